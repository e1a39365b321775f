"""Learners: folds from lessons to checkpoints; and the gates their checkpoints must pass."""
