"""Views: the present content of topics. Each view is a pure fold of one topic's events."""
