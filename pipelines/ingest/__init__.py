"""Raw events -> clean, split, audited dataset directory."""

from __future__ import annotations

from pipelines.ingest.ingest import ingest
from pipelines.ingest.source import source_fingerprint

__all__ = ["ingest", "source_fingerprint"]
