"""The processors: join, judge, router, batcher, learners, promotion."""
