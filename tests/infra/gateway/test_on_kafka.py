"""Kafka goes away under load and comes back: no call fails, no event is lost, each rollout's order
is kept.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.config.settings import Settings
from schemas.rewards import RewardEvent
from schemas.routes import RouteEvent
from schemas.serialization import decode, decode_all
from schemas.spans import Attribute, SpanEvent
from schemas.topics import REWARDS, ROUTES, SPANS
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.conftest import serving
from tests.infra.conftest import model_route, running_gateway
from tests.infra.upstream import Upstream
from tests.kafka import declare_afresh, local_cluster
from tests.waiting import eventually

CALLERS = 3
OUTAGE_S = float(os.environ.get("TEST_OUTAGE_S", "3"))
"""How long Kafka stays away; `make faults` makes it two minutes."""


@pytest.mark.kafka
@pytest.mark.timeout(300 + 4 * OUTAGE_S)
def test_calls_are_served_and_events_kept_while_kafka_is_away(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with local_cluster(tmp_path / "kafka") as cluster, serving(Upstream().app) as upstream:
        declare_afresh(cluster.bootstrap)
        settings = Settings(data_dir=tmp_path, log=f"kafka://{cluster.bootstrap}")
        with KafkaLog(Cluster(cluster.bootstrap)) as log:
            log.append(
                [
                    Outgoing.of(
                        ROUTES, "tiny", RouteEvent(payload=model_route("tiny", upstream))
                    ).record()
                ]
            )
        failures: list[str] = []
        rewarded: list[str] = []
        made: dict[str, int] = defaultdict(int)
        stop = threading.Event()

        def work(rollout_id: str) -> None:
            headers = {"x-everloop-rollout-id": rollout_id}
            while not stop.is_set():
                answer = gateway.chat(headers=headers, seed=made[rollout_id])
                made[rollout_id] += 1
                if not answer.is_success:
                    failures.append(answer.text)
                reward = gateway.http.post(
                    "/everloop/v1/rewards", json={"rollout_id": rollout_id, "value": 0.5}
                )
                if reward.is_success:
                    rewarded.append(reward.json()["event_id"])
                else:
                    failures.append(reward.text)

        with running_gateway(settings) as gateway:
            eventually(lambda: gateway.http.get("/readyz").json()["ready"], "the route")
            callers = [
                threading.Thread(target=work, args=(f"r{number}",)) for number in range(CALLERS)
            ]
            for caller in callers:
                caller.start()
            eventually(lambda: sum(made.values()) > 30, "calls before")
            cluster.stop()
            before = sum(made.values())
            eventually(lambda: gateway.health()["status"] == "spooling", "the spool")
            threading.Event().wait(OUTAGE_S)
            away = sum(made.values()) - before
            assert away > 10 * OUTAGE_S
            assert gateway.health()["events"]["error"]
            cluster.start()
            eventually(lambda: gateway.health()["status"] == "ok", "an empty spool")
            stop.set()
            for caller in callers:
                caller.join()
            eventually(lambda: gateway.health()["status"] == "ok", "an empty spool")
            assert gateway.health()["events"]["lost"] == {}
        record_property("calls_while_kafka_was_away", away)
        record_property("calls", sum(made.values()))
        assert failures == []
        with KafkaLog(Cluster(cluster.bootstrap)) as log:
            spans = [
                span
                for record in read_all(log, SPANS.name)
                for span in decode_all(SpanEvent, record.value)
            ]
            rewards = {
                decode(RewardEvent, record.value).event_id for record in read_all(log, REWARDS.name)
            }
        assert rewards == set(rewarded)
        first_seen = {
            span.span_id: span for span in reversed(spans)
        }  # one may be there twice, with one id
        starts: dict[str, list[int]] = defaultdict(list)
        for span in spans:
            if first_seen.pop(span.span_id or "", None) is not None:
                starts[span.rollout_id or ""].append(span.payload.start_unix_nano)
        assert {name: len(found) for name, found in starts.items()} == dict(made)
        assert all(found == sorted(found) for found in starts.values())
        assert {span.payload.attributes[Attribute.CHECKPOINT] for span in spans} == {"v1"}
