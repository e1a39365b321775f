"""Views: what a topic says now, folded from its records, with one rule for unreadable ones."""
