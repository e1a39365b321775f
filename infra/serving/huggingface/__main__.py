"""Run the server: `python -m infra.serving.huggingface FOLDER --name NAME --port PORT`. Needs the
extra `learn`.
"""

import argparse
import sys
from pathlib import Path

from infra.runtime.errors import ConfigError
from infra.runtime.http import bound_socket, serve
from infra.serving.huggingface.app import create_app
from infra.serving.huggingface.generation import GenerationEngine, UnloadableError


def main() -> int:
    """Serve until SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(prog="everloop model server")
    parser.add_argument(
        "folder", type=Path, help="weights and tokenizer, as Hugging Face saves them"
    )
    parser.add_argument("--name", required=True, help="that requests know the weights by")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    try:
        engine = GenerationEngine(options.folder, options.name, threads=options.threads)
        listener = bound_socket(options.host, options.port, "--port")
    except (UnloadableError, ConfigError) as error:
        sys.stderr.write(f"model server: {error}\n")
        return 2
    serve(create_app(engine), listener)
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
