"""The log of one machine, in one SQLite file."""
