"""The gateway: agents call their models through it, and everything they do becomes an event."""
