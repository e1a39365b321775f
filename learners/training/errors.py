"""Errors of training that a person can fix."""


class TrainingError(Exception):
    """A run cannot produce weights that may be served. The message says why."""
