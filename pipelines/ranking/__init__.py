"""Ranking experiments: labelled events in, log-odds and their exact evaluation out."""
