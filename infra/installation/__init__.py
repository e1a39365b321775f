"""An installation, put together from its settings: log, topics, processors, first routes."""
