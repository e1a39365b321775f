"""The processes of an installation, and what keeps them running."""
