"""Rankers: models that give the log-odds of a click for an event with categorical and numeric fields."""
