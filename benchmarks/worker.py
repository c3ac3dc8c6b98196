"""The peer's side of :class:`benchmarks.harness.Peer`: standard library only, runs in the peer's environment.

A worker script ends with::

    if __name__ == "__main__":
        serve(job)

where ``job(request)`` does the work of one request and returns ``{"seconds": float, "quality": {...}}``. What the
peer prints goes to stderr; stdout carries one JSON object a line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

Job = Callable[[dict[str, Any]], dict[str, Any]]


def serve(job: Job) -> None:
    """Answer requests on stdin until it closes; an exception is sent back, not swallowed."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        print(json.dumps({"ready": True}), file=replies, flush=True)
        for line in sys.stdin:
            try:
                reply = job(json.loads(line))
                reply.setdefault("peak_rss_mib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            except Exception:
                reply = {"error": traceback.format_exc()}
            print(json.dumps(reply), file=replies, flush=True)
