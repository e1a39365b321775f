"""Errors that a user can fix. The command line prints them as one line and exits with status 2."""


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line that says what to change."""
