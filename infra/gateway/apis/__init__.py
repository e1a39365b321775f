"""The gateway's APIs, one module each."""
