"""A simulator of the research society's models, for machines without a model: a real
OpenAI-compatible HTTP server.

It is no language model. It plays each role by lexical rules over the text it is given
(`reading.py`, `roles.py`), and never sees a label.
"""
