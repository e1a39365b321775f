"""Gateway, worker, learner and brokers are killed under load, on a slow network: nothing is lost or
learned twice.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from infra.config.settings import Settings
from infra.installation.processors import all_processors, learning_processors
from infra.kafka.local import HOST, Broker, LocalCluster
from schemas.examples import ExampleEvent
from schemas.routes import Route, RouteEvent
from schemas.serialization import decode_all
from schemas.topics import DECISIONS, EXAMPLES, REWARDS, ROLLOUTS, ROUTES, Topic
from streams.processors.promotion_state import baseline_route
from streams.runners.lag import wait_until_drained
from streams.runners.replay import live_state
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.conftest import serving
from tests.e2e.installation import Part
from tests.infra.conftest import model_route
from tests.infra.upstream import Upstream
from tests.kafka import declare_afresh, local_cluster
from tests.proxy import proxies
from tests.waiting import eventually

KILLS = int(os.environ.get("TEST_KILLS", "10"))
"""How many processes are killed; `make faults` makes it 120."""

CALLERS = 3
POLICY = "supervisor-policy"
VICTIMS = ("worker", "learner", "gateway", "worker", "broker")
DRAIN_S = 300.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 20 * KILLS),
]


@dataclass
class Acknowledged:
    """What callers were told is durable.

    Attributes:
        events: ids by topic.
        complete: rollouts of which everything was acknowledged.
        unanswered: requests without an answer, because the gateway was killed; nothing is claimed
            of them.
        refused: requests that the gateway answered, but not with success.
    """

    events: dict[str, set[str]] = field(
        default_factory=lambda: {t.name: set() for t in (DECISIONS, REWARDS)}
    )
    complete: set[str] = field(default_factory=set)
    unanswered: int = 0
    refused: list[str] = field(default_factory=list)


def rollout(http: httpx.Client, name: str, random: Random, acknowledged: Acknowledged) -> None:
    """Run one rollout through the gateway; a request that is not answered ends it."""

    def post(path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        answer = http.post(path, json=body, headers=headers)
        if not answer.is_success:
            acknowledged.refused.append(f"{path} {answer.status_code} {answer.text[:200]}")
            raise httpx.RequestError("refused")
        return answer.json()

    try:
        post("/everloop/v1/rollouts", {"rollout_id": name, "task": {"id": name, "input": "?"}})
        messages = [{"role": "user", "content": name}]
        post(
            "/v1/chat/completions",
            {"model": "tiny", "messages": messages},
            {"x-everloop-rollout-id": name},
        )
        texts = [f"it helps {random.random():.1f}", f"it harms {random.random():.1f}"]
        candidates = [{"id": f"junior-{index}", "text": text} for index, text in enumerate(texts)]
        asked = {"rollout_id": name, "policy": POLICY, "context": "?", "candidates": candidates}
        decided = post("/everloop/v1/decisions", asked)
        acknowledged.events[DECISIONS.name].add(decided["decision_id"])
        post(f"/everloop/v1/rollouts/{name}/end", {"state": "succeeded"})
        value = 0.9 if decided["choice"] == 0 else 0.2
        rewarded = post("/everloop/v1/rewards", {"rollout_id": name, "value": value})
        acknowledged.events[REWARDS.name].add(rewarded["event_id"])
        acknowledged.complete.add(name)
    except httpx.RequestError as error:
        acknowledged.unanswered += str(error) != "refused"


def ids(log: KafkaLog, topic: Topic) -> Counter[str]:
    """Return how often each event id is on a topic."""
    return Counter(
        event.event_id
        for record in read_all(log, topic.name)
        for event in decode_all(topic.event, record.value)
    )


def kill(victim: str, parts: Mapping[str, Part], cluster: LocalCluster, random: Random) -> None:
    """Kill a process with SIGKILL and start it again."""
    if victim == "broker":
        cluster.kill(random.choice(cluster.brokers).id)
        time.sleep(random.uniform(0.0, 3.0))
        cluster.start(3)
    else:
        parts[victim].kill_and_restart()


def test_kills_under_load_lose_nothing_and_teach_nothing_twice(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    begun, random = time.monotonic(), Random(KILLS)
    with proxies(3) as network, serving(Upstream().app) as upstream:

        def behind_a_proxy(broker: Broker) -> Mapping[str, object]:
            proxy = network[broker.id - 1]
            proxy.target = broker.port
            return {"advertised.listeners": f"PLAINTEXT://{HOST}:{proxy.port}"}

        with local_cluster(tmp_path / "kafka", 3, behind_a_proxy) as cluster:
            bootstrap = ",".join(f"{HOST}:{proxy.port}" for proxy in network)
            settings = Settings(data_dir=tmp_path, log=f"kafka://{bootstrap}")
            processors = all_processors(settings)
            declare_afresh(bootstrap, processors)
            with KafkaLog(Cluster(bootstrap)) as log:
                routes: list[Route] = [model_route("tiny", upstream), baseline_route(POLICY)]
                log.append(
                    [
                        Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()
                        for route in routes
                    ]
                )
                acknowledged, killed = under_load(tmp_path, bootstrap, cluster, random)
                figures = checked(log, settings, acknowledged)
    figures |= {"kills": killed, "duration_s": round(time.monotonic() - begun)}
    record_property("figures", json.dumps(figures))
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(figures, indent=2)}\n")
    assert figures["gateway_refused"] == []
    assert (figures["acknowledged_events_lost"], figures["examples_learned_twice"]) == (0, 0)
    assert figures["rollouts_without_example"] == 0
    assert figures["weights_equal_undisturbed_fold"]


def under_load(
    folder: Path, bootstrap: str, cluster: LocalCluster, random: Random
) -> tuple[Acknowledged, dict[str, int]]:
    """Kill processes while callers use the gateway; return what was acknowledged, and how often
    each was killed.
    """
    acknowledged, stop = Acknowledged(), threading.Event()
    more = {"EVERLOOP_LOG": f"kafka://{bootstrap}", "EVERLOOP_GATEWAY__PORT": str(free_port())}
    url = f"http://{HOST}:{more['EVERLOOP_GATEWAY__PORT']}"

    def call(caller: int) -> None:
        mine = Random(caller)
        with httpx.Client(base_url=url, timeout=60) as http:
            for number in range(1_000_000):
                if stop.wait(0.15):
                    return
                rollout(http, f"rollout-{caller}-{number}", mine, acknowledged)

    plan = [VICTIMS[number % len(VICTIMS)] for number in range(KILLS)]
    random.shuffle(plan)
    with (
        Part("worker", folder, more) as worker,
        Part("learner", folder, more) as learner,
        Part("gateway", folder, more) as gateway,
    ):
        parts = {"worker": worker, "learner": learner, "gateway": gateway}
        eventually(lambda: answers(url), "the gateway")
        callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        for victim in plan:
            time.sleep(random.uniform(0.2, 4.0))
            kill(victim, parts, cluster, random)
        eventually(lambda: answers(url), "the gateway")
        stop.set()
        for caller in callers:
            caller.join()
        eventually(lambda: httpx.get(f"{url}/healthz").json()["status"] == "ok", "an empty spool")
        settings = Settings(data_dir=folder, log=f"kafka://{bootstrap}")
        with KafkaLog(Cluster(bootstrap)) as log:
            wait_until_drained(log, all_processors(settings), DRAIN_S)
    return acknowledged, dict(Counter(plan))


def checked(log: KafkaLog, settings: Settings, acknowledged: Acknowledged) -> dict[str, Any]:
    """Return what became of it all."""
    (learning,) = learning_processors(settings)
    found = {topic.name: ids(log, topic) for topic in (DECISIONS, REWARDS, ROLLOUTS)}
    examples: dict[str, ExampleEvent] = {}
    records = 0
    for record in read_all(log, EXAMPLES.name):
        for event in decode_all(ExampleEvent, record.value):
            if event.payload.target == POLICY:
                examples.setdefault(event.event_id, event)
                records += 1
    learned = live_state(log, learning)
    assert learned is not None
    undisturbed = learning.learner.initial()
    for example in examples.values():
        undisturbed = learning.learner.fold(undisturbed, example)
    taught = Counter(
        (example.rollout_id, example.payload.reward_revision) for example in examples.values()
    )
    return {
        "rollouts_complete": len(acknowledged.complete),
        "requests_unanswered": acknowledged.unanswered,
        "gateway_refused": acknowledged.refused[:5],
        "acknowledged_events": sum(len(events) for events in acknowledged.events.values()),
        "acknowledged_events_lost": sum(
            len(events - found[topic].keys()) for topic, events in acknowledged.events.items()
        ),
        "events_written_twice": sum(
            times - 1 for counts in found.values() for times in counts.values()
        ),
        "examples": len(examples),
        "examples_written_twice": records - len(examples),
        "examples_learned_twice": learned.state.examples
        - sum(example.payload.split == "train" for example in examples.values())
        + sum(times - 1 for times in taught.values()),
        "rollouts_without_example": len(
            acknowledged.complete - {rollout_id for rollout_id, _ in taught}
        ),
        "weights_equal_undisturbed_fold": learning.learner.encode(learned.state)
        == learning.learner.encode(undisturbed),
    }


def answers(url: str) -> bool:
    """Return whether the gateway is ready."""
    try:
        return bool(httpx.get(f"{url}/readyz", timeout=2).is_success)
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
