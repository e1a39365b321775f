"""The demonstration: the example agent, with and without learning, on one installation."""
