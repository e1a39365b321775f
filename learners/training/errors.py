"""What ends a training run for a reason that a person can mend."""


class TrainingError(Exception):
    """A run cannot give weights that may be served; the message says why."""
