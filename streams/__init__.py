"""Stream processors (pure), the logs they run on, and the runners that carry them."""
