"""Settings of the servers of trained weights."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from infra.runtime.section import Section


class ServingSettings(Section):
    """How trained weights are served.

    Attributes:
        engine: `vllm`, or `huggingface`: a light server for CPUs and small models.
        python: interpreter that has the engine; None is the trainer's own.
        host: address at which servers listen.
        advertised_host: address at which the gateway reaches them; None is `host`.
        start_timeout_s: most seconds until a server answers.
        timeout_s: most seconds for one answer, also in the check of a trained model.
        drain_s: seconds that a server is kept when no route leads to it any more, for calls in
            flight.
        gpu_memory: share of a GPU's memory that one vLLM may take.
        lora_rank: highest rank of an adapter that vLLM takes.
        arguments: further arguments of the server's command line.
    """

    engine: Literal["huggingface", "vllm"] = "huggingface"
    python: Path | None = None
    host: str = "127.0.0.1"
    advertised_host: str | None = None
    start_timeout_s: float = Field(default=600.0, gt=0.0)
    timeout_s: float = Field(default=60.0, gt=0.0)
    drain_s: float = Field(default=60.0, ge=0.0)
    gpu_memory: float = Field(default=0.7, gt=0.0, le=1.0)
    lora_rank: int = Field(default=64, ge=1)
    arguments: tuple[str, ...] = ()


APP_SCHEME = "app://"
"""Begins the base URL of a model that one of the configured applications serves."""


class AppSettings(Section):
    """A server of the user's own. Everloop starts, watches and stops it like its own processes.

    It serves every model whose `base_url` is `app://NAME/v1`.

    Attributes:
        app: `module:function`; the function returns an ASGI application.
        port: 0 takes a free one.
    """

    app: str
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535)
