"""TensorZero's gateway as its Python client embeds it, on a port of its own: `tensorzero_gateway.py
CONFIG`.

Prints the base URL when it serves, and serves until it is terminated.
"""

import signal
import sys

from openai import OpenAI
from tensorzero import patch_openai_client

client = patch_openai_client(OpenAI(api_key="none"), config_file=sys.argv[1], async_setup=False)
sys.stdout.write(f"{client.base_url}\n")
sys.stdout.flush()
signal.pause()
