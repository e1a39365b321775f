"""Agents that somebody wrote from README and docs. They know an address and read tickets.

Each is a program. It reads one ticket a line from its standard input, works on it, and writes a
line of what it used: the model or the candidates that were chosen for it.
"""
