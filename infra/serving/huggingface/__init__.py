"""A light server of Hugging Face checkpoints with vLLM's OpenAI API: for processors, small models
and tests.
"""
