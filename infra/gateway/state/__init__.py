"""State: what the gateway keeps between requests. It is made once, and all requests share it."""
