"""A light server of Hugging Face checkpoints with vLLM's OpenAI API, for CPUs, small models and
tests.
"""
