"""Ids and tables: how an id finds its embedding rows, and where the rows live. Knows no model and no user."""
