"""Names of the columns that reading adds to events; a control character keeps them apart from those of files."""

LABEL, KEY = "\x1flabel", "\x1fkey"
