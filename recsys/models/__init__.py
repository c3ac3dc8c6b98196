"""Retrievers: matrix factorisation and the baselines that it must beat."""
