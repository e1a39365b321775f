"""Every event of the log as a pydantic model, the topics they live on, and their one serialiser."""
