"""Exact metrics of ranked lists, scores and recommendations."""
