"""Agent Lightning's 1.0 server API."""
