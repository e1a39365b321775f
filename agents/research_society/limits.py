"""How long the society may work on one goal."""

MAX_TURNS = 15
"""Roles' turns after which the principal investigator decides with what there is."""

MAX_TOOL_ROUNDS = 3
"""Times a role may ask for tools before it must answer."""
