"""Learners: folds from examples to checkpoints; and the gates their checkpoints must pass."""
