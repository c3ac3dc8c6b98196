"""The report: one HTML file that says what a run found and shows why to believe it."""

from pipelines.report.build import build_report

__all__ = ["build_report"]
