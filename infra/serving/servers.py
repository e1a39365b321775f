"""Model servers as child processes.

Each gets a free port. It must answer a prompt before its model is announced. It finishes its open
requests before it stops.
"""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import structlog
from pydantic import BaseModel

from infra.serving.settings import ServingSettings
from schemas.endpoints import Endpoint

STOP_TIMEOUT_S = 30.0
ASKED = "Say something."
logger = structlog.get_logger(__name__)


class ServingError(Exception):
    """A model is not served; the message says why, with the server's last words."""


class _ServerProcess(BaseModel):
    """The note about a server's process. A later trainer finds the server by it."""

    weights: str
    port: int
    pid: int
    created: float


@dataclass
class Server:
    """One server process and what it serves.

    Attributes:
        weights: folder, or name on the hub.
        name: the model's name in requests.
        adapters: name to folder of the adapters that were loaded at run time.
    """

    weights: str
    name: str
    port: int
    log: Path
    host: str = "127.0.0.1"
    advertised_host: str = "127.0.0.1"
    adapters: dict[str, Path] = field(default_factory=dict)
    process: psutil.Process | None = None

    @property
    def url(self) -> str:
        """The server's URL on this machine, without `/v1`."""
        # nothing is bound to it here
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104
        return f"http://{host}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        try:
            process = self.process
            return (
                process is not None
                and process.is_running()
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def endpoint(self, model: str) -> Endpoint:
        """Return where one of its models is called."""
        return Endpoint(
            base_url=f"http://{self.advertised_host}:{self.port}/v1", model=model, tokens=True
        )

    def last_words(self) -> str:
        """Return the last line it wrote."""
        lines = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        return lines[-1] if lines else "nothing was logged"


class Servers:
    """The servers of an installation, one for each set of whole weights. An adapter is loaded into
    the server of its base.

    Args:
        folder: for their logs.
    """

    def __init__(self, settings: ServingSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._http = httpx.Client(timeout=settings.timeout_s)
        self.servers: dict[str, Server] = {}

    def adopt(self) -> None:
        """Take over all servers that a killed trainer left running, needed or not."""
        for note in self._folder.glob("*.json"):
            left = _ServerProcess.model_validate_json(note.read_bytes())
            server = self._server(left.weights, note.stem, left.port)
            if self._adopt(server):
                self.servers[left.weights] = server
            else:
                note.unlink()

    def serve(self, weights: str, name: str, port: int | None = None) -> Server:
        """Return the server of whole weights, once it answers. A server that does not run is
        started.

        Args:
            port: where it is to listen again; None takes a free one.

        Raises:
            ServingError: it does not come up, or gives no answer.
        """
        server = self.servers.get(weights)
        if server is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            server = self._server(weights, name, port or free_port(self._settings.host))
            self.servers[weights] = server
        # A killed trainer leaves its servers running. To load the weights again would take minutes
        # and memory.
        if not server.alive and not self._adopt(server):
            self._start(server)
            try:
                self._wait(server)
                # A server that is started again has lost its adapters.
                for adapter, folder in server.adapters.items():
                    self._load(server, adapter, folder)
                self._ask(server, server.name)
            except ServingError:
                self.stop(weights)
                raise
        return server

    def serve_adapter(
        self, base: str, base_name: str, adapter: str, folder: Path, port: int | None = None
    ) -> Server:
        """Return the server of the base weights with the adapter loaded, once the adapter answers.

        Raises:
            ServingError: the adapter does not fit, or gives no answer.
        """
        server = self.serve(base, base_name, port)
        loaded = adapter in server.adapters
        # Noted before it is loaded: if the server dies meanwhile, `serve` loads it again.
        server.adapters[adapter] = folder
        try:
            if not loaded:
                self._load(server, adapter, folder)
                self._ask(server, adapter)
        except ServingError:
            self.unload(server, adapter)
            raise
        return server

    def unload(self, server: Server, adapter: str) -> None:
        """Unload an adapter. Its calls in flight are answered first."""
        server.adapters.pop(adapter, None)
        if server.alive:
            with suppress(ServingError):  # it never had it
                self._post(server, "/v1/unload_lora_adapter", {"lora_name": adapter})

    def stop(self, weights: str) -> None:
        """Stop a server. It finishes the requests that it is answering."""
        server = self.servers.pop(weights, None)
        if server is None or server.process is None:
            return
        if server.alive:
            server.process.terminate()
            try:
                server.process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                logger.warning("model server did not stop, killing it", server=server.name)
                server.process.kill()
                server.process.wait()
        # Only now: as long as the process may run, a successor must find it.
        self._note(server).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop all."""
        for weights in list(self.servers):
            self.stop(weights)
        self._http.close()

    def command(self, server: Server) -> list[str]:
        """Return what starts a server."""
        python, settings = str(self._settings.python or sys.executable), self._settings
        place = ["--host", server.host, "--port", str(server.port), *settings.arguments]
        if settings.engine == "huggingface":
            return [
                python,
                "-m",
                "infra.serving.huggingface",
                server.weights,
                "--name",
                server.name,
                *place,
            ]
        return [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", server.weights,
            "--served-model-name", server.name,
            "--gpu-memory-utilization", str(settings.gpu_memory),
            "--enable-lora", "--max-lora-rank", str(settings.lora_rank),
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *place,
        ]  # fmt: skip

    def _server(self, weights: str, name: str, port: int) -> Server:
        host = self._settings.host
        told = self._settings.advertised_host or host
        return Server(weights, name, port, self._folder / f"{name}.log", host, told)

    def _start(self, server: Server) -> None:
        # vLLM loads adapters at run time only where this variable allows it.
        environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        with server.log.open("ab") as output:
            started = subprocess.Popen(  # noqa: S603 - our own command
                self.command(server),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server.process = psutil.Process(started.pid)
        running = _ServerProcess(
            weights=server.weights,
            port=server.port,
            pid=started.pid,
            created=server.process.create_time(),
        )
        partial = self._note(server).with_suffix(".partial")
        partial.write_text(running.model_dump_json())
        partial.replace(self._note(server))

    def _adopt(self, server: Server) -> bool:
        """Take over a server that a killed trainer left running. Return whether there is one."""
        try:
            left = _ServerProcess.model_validate_json(self._note(server).read_bytes())
            process = psutil.Process(left.pid)
            same = process.create_time() == left.created and left.weights == server.weights
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False
        if not same or process.status() == psutil.STATUS_ZOMBIE:
            return False
        server.port, server.process = left.port, process
        try:
            known = self._http.get(f"{server.url}/v1/models").json()["data"]
        except (httpx.HTTPError, ValueError, LookupError):
            process.kill()  # it runs and does not answer
            process.wait()
            return False
        # The server knows what it has loaded. The folders are not needed again.
        server.adapters = {model["id"]: Path() for model in known if model["id"] != server.name}
        return True

    def _note(self, server: Server) -> Path:
        return self._folder / f"{server.name}.json"

    def _wait(self, server: Server) -> None:
        """Wait until a server is healthy and serves its weights. Another server may have taken the
        port.
        """
        deadline = time.monotonic() + self._settings.start_timeout_s
        while True:
            if not server.alive:
                raise ServingError(
                    f"the server of {server.name} ended: {server.last_words()} (see {server.log})"
                )
            try:
                if self._http.get(f"{server.url}/health", timeout=2.0).is_success:
                    known = self._http.get(f"{server.url}/v1/models").json()["data"]
                    if any(model["id"] == server.name for model in known):
                        return
            except (httpx.HTTPError, ValueError, KeyError):
                pass  # not yet
            if time.monotonic() > deadline:
                waited = f"{self._settings.start_timeout_s:.0f} s"
                raise ServingError(
                    f"the server of {server.name} was not ready in {waited} (see {server.log})"
                )
            time.sleep(0.1)

    def _ask(self, server: Server, model: str) -> None:
        """Ask for one answer. A server may be healthy though its weights are not."""
        body = {"model": model, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 8}
        answer = self._post(server, "/v1/chat/completions", body)
        try:
            answer.json()["choices"][0]["message"]
        except (ValueError, LookupError, TypeError) as error:
            raise ServingError(
                f"{model} gave no answer to a first prompt: {answer.text[:200]}"
            ) from error

    def _load(self, server: Server, adapter: str, folder: Path) -> None:
        self._post(
            server,
            "/v1/load_lora_adapter",
            {"lora_name": adapter, "lora_path": str(folder.absolute())},
        )

    def _post(self, server: Server, path: str, body: dict[str, object]) -> httpx.Response:
        try:
            answer = self._http.post(f"{server.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise ServingError(
                f"{server.name} at {server.url}{path}: {type(error).__name__} {error}"
            ) from error
        if not answer.is_success:
            raise ServingError(
                f"{server.name} at {server.url}{path}: {answer.status_code} {answer.text[:200]}"
            )
        return answer


def free_port(host: str) -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
