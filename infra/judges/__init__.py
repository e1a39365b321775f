"""What grades closed rollouts and reads implicit feedback, by rules or by asking a model."""
