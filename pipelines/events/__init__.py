"""Experiments on events: what those of one task and those of several tasks share."""
