"""Semantic ids: content to vectors, vectors to codes of several levels, codes to table rows."""
