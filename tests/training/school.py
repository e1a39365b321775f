"""A gateway, a teacher who mostly knows, a pupil who does not, and the worker that makes examples
of their answers.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request

from infra.config.settings import Settings
from infra.installation.processors import stream_processors
from infra.training.checks import written_answer
from schemas.endpoints import Endpoint
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.serialization import decode_all
from schemas.spans import Attribute, Span, SpanEvent
from schemas.topics import ROUTES, SPANS
from streams.runners.lag import wait_until_drained
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.e2e.installation import Part
from tests.infra.conftest import Gateway
from tests.training.tiny import TOOLS, Task, tasks
from tests.waiting import PATIENCE_S, eventually

PUPIL, TEACHER, CARELESS = "pupil", "teacher", "careless"
ALL = tasks()
HELD_OUT, TAUGHT = ALL[: len(ALL) // 5], ALL[len(ALL) // 5 :]
ASK_TOGETHER = 8


def teacher() -> FastAPI:
    """Return a server of OpenAI's API with two teachers.

    One is right about seven tasks of eight, always the same ones; the careless one is right four
    times of five, whatever it is asked.
    """
    app = FastAPI()
    by_question = {task.question: task for task in ALL}
    asked: Counter[str] = Counter()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> dict[str, Any]:
        body = await request.json()
        task = by_question[body["messages"][-1]["content"]]
        asked[task.id] += 1
        if body["model"] == CARELESS:
            right = sha256(f"{task.id}{asked[task.id]}".encode()).digest()[0] < 256 * 0.8
            return completion(body["model"], message_of(task.answer if right else task.opposite))
        right = sha256(task.id.encode()).digest()[0] % 8 > 0
        return completion(body["model"], message_of(task.answer if right else task.wrong))

    return app


def message_of(text: str) -> dict[str, Any]:
    """Return an answer as a message, its call as a call."""
    if not text.startswith("<tool_call>"):
        return {"role": "assistant", "content": text}
    called = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    arguments = json.dumps(called["arguments"], separators=(",", ":"))
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": called["name"], "arguments": arguments},
    }
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def completion(model: str, message: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's document around a message."""
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 20, "total_tokens": 40}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


@dataclass
class School:
    """The gateway, and what is done there."""

    gateway: Gateway
    log: EmbeddedLog
    settings: Settings
    numbers: Iterator[int]

    def asked(
        self,
        model: str,
        of: Sequence[Task],
        samples: int = 1,
        temperature: float = 1.0,
        split: str = "train",
    ) -> list[float]:
        """Have tasks done through the gateway, each in a rollout of its own; return their rewards,
        in order.
        """

        def done(task: Task) -> float:
            name = f"rollout-{next(self.numbers)}"
            post = self.gateway.http.post
            started = {
                "rollout_id": name,
                "task": {"id": task.id, "input": task.question, "expected": task.label},
                "split": split,
            }
            post("/everloop/v1/rollouts", json=started).raise_for_status()
            body = {
                "model": model,
                "messages": task.messages,
                "tools": TOOLS,
                "temperature": temperature,
            }
            headers = {"x-everloop-rollout-id": name, "x-everloop-node": model}
            answer = post("/v1/chat/completions", json=body | {"max_tokens": 40}, headers=headers)
            reward = task.reward(
                written_answer(answer.raise_for_status().json()["choices"][0]["message"], TOOLS)[0]
            )
            post(
                f"/everloop/v1/rollouts/{name}/end", json={"state": "succeeded"}
            ).raise_for_status()
            post(
                "/everloop/v1/rewards", json={"rollout_id": name, "value": reward}
            ).raise_for_status()
            return reward

        with ThreadPoolExecutor(ASK_TOGETHER) as pool:
            return list(pool.map(done, [task for task in of for _ in range(samples)]))

    def exact(self, model: str) -> tuple[float, float]:
        """Return how a model does on held-out tasks by its likeliest answers.

        Returns:
            The share of calls that are exactly right where one is asked for, and the share of calls
            where none is.
        """
        wanted = [task for task in HELD_OUT if task.label is not None]
        unwanted = [task for task in HELD_OUT if task.label is None]
        right = self.asked(model, wanted, temperature=0.0, split="test")
        silent = self.asked(model, unwanted, temperature=0.0, split="test")
        return sum(r == 1.0 for r in right) / len(right), sum(r == 0.0 for r in silent) / len(
            silent
        )

    def mean_reward(self, model: str, samples: int = 10) -> float:
        """Return the mean reward of sampled answers to held-out tasks."""
        rewards = self.asked(model, HELD_OUT, samples, split="test")
        return sum(rewards) / len(rewards)

    def serve(self, version: str, endpoint: Endpoint) -> None:
        """Lead the pupil's name to a server."""
        publish_model(self.log, PUPIL, version, endpoint)

        def switched() -> bool:
            routes = self.gateway.http.get("/everloop/v1/routes").json()
            return any(
                t["version"] == version
                for r in routes["routes"]
                if r["name"] == PUPIL
                for t in r["targets"]
            )

        eventually(switched, f"{version} in the gateway")

    def spans(self) -> list[Span]:
        """Return the pupil's calls, oldest first."""
        records = sorted(read_all(self.log, SPANS.name), key=lambda record: record.sequence)
        found = [
            event.payload for record in records for event in decode_all(SpanEvent, record.value)
        ]
        return [span for span in found if span.attributes.get(Attribute.REQUEST_MODEL) == PUPIL]

    def learned(self) -> None:
        """Return when all that happened has become examples."""
        wait_until_drained(self.log, stream_processors(self.settings), PATIENCE_S)


def publish_model(log: EmbeddedLog, name: str, version: str, endpoint: Endpoint) -> None:
    """Lead a logical name to a server."""
    route = Route(
        name=name, kind="model", targets=[RouteTarget(version=version, endpoint=endpoint)]
    )
    log.append([Outgoing.of(ROUTES, name, RouteEvent(payload=route)).record()])


@contextmanager
def school(settings: Settings, gateway: Gateway, folder: Path) -> Iterator[School]:
    """Run a worker beside a gateway."""
    with EmbeddedLog(settings.log_path) as log, Part("worker", folder):
        yield School(gateway, log, settings, count())
