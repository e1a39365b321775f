"""Benchmarks: `make bench`. What is compared is measured in the same run."""
