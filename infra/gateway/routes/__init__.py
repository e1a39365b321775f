"""What serves each logical name, and what each open rollout is pinned to."""
