"""Hyper-parameter search over an experiment, by its validation metric."""
