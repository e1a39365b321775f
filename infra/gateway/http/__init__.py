"""HTTP: who calls, for what, within which limits, and how errors are answered."""
