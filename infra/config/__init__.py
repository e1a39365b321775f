"""All settings, put together, and where each value comes from."""
