"""The path that production takes, from `everloop up` with its defaults, beside Vowpal Wabbit."""
