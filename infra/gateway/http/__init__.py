"""HTTP: who calls, within which limits, where we may call, how errors are answered."""
