"""The client of Everloop's gateway: rollouts, decisions and rewards."""
