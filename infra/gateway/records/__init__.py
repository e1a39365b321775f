"""Events on their way to the log: redacted, published, exported."""
