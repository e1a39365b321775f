"""The log of one machine, in SQLite, and the runner that processes it exactly once."""
