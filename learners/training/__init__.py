"""Learners that train models: each reads rows and a parent's weights, and leaves new weights in a
folder.

Only `config` may be imported without the extra `learn`; everything else needs torch.
"""
