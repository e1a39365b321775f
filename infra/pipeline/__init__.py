"""The pipeline: phases that gather, train one part of the agent each, and switch to it before the
next begins.
"""
