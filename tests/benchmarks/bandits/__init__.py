"""The bandit beside its peers: what it earns, how fast it is, and whether its evaluation tells the
truth.
"""
