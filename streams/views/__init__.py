"""Views: what a topic says now. Each is a pure fold of one topic's events."""
