"""How many rollouts it takes until the better option serves, in simulated time."""
