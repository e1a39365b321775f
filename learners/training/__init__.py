"""Learners that train models.

Each one reads rows and the weights of a parent, and writes new weights to a folder. `config` needs
no extra; every other module needs torch, which the extra `learn` installs.
"""
