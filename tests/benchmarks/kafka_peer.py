"""What is measured on Kafka, each in a process of its own: `python -m tests.benchmarks.kafka_peer
NAME BOOTSTRAP DIR`.

`everloop` joins and routes; `faust` is a bare Faust function that passes records on; `aiokafka` is
a bare consumer and producer that do the same in batches.
"""

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS, TRAJECTORIES
from streams.processors.adapter import AdapterConfig
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import JoinConfig, TrajectoryJoin
from streams.runners.kafka.faust_app import run_app
from streams.storage.kafka.cluster import Cluster
from streams.storage.records import MAX_RECORD_BYTES

SOURCES = [topic.name for topic in (ROLLOUTS, SPANS, DECISIONS, REWARDS)]


def everloop(bootstrap: str, folder: Path) -> None:
    """Join and route, as a worker does."""
    router = ExampleRouter(AdapterConfig(), JoinConfig().late_reward_window)
    gc.collect()
    gc.freeze()  # as the workers do
    run_app(Cluster(bootstrap), [TrajectoryJoin(), router], folder)


def bare_faust(bootstrap: str, folder: Path) -> None:
    """Pass records on, one Faust event at a time, as Faust's own examples do."""
    app = faust.App(
        "bare",
        broker=f"kafka://{bootstrap}",
        datadir=str(folder),
        store="memory://",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        topic_partitions=8,
        consumer_max_fetch_size=MAX_RECORD_BYTES,
        producer_acks=-1,
    )
    raw: dict[str, Any] = {"key_serializer": "raw", "value_serializer": "raw"}
    source = app.topic(*SOURCES, key_type=bytes, value_type=bytes, partitions=8, **raw)
    target = app.topic(TRAJECTORIES.name, key_type=bytes, value_type=bytes, partitions=8, **raw)

    async def pass_on(stream: Any) -> None:
        async for event in stream.events():
            await target.send(key=event.key, value=event.value)

    app.agent(source)(pass_on)
    faust.Worker(app, loglevel="WARN", quiet=True).execute_from_commandline()


def bare_aiokafka(bootstrap: str, folder: Path) -> None:
    """Pass records on in batches, with nothing in between."""
    asyncio.run(_pass_on(bootstrap))


async def _pass_on(bootstrap: str) -> None:
    consumer = AIOKafkaConsumer(
        *SOURCES,
        bootstrap_servers=bootstrap,
        group_id="bare-aiokafka",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with consumer, AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        while True:
            fetched = await consumer.getmany(timeout_ms=500, max_records=500)
            sent = [
                await producer.send(TRAJECTORIES.name, message.value, message.key)
                for messages in fetched.values()
                for message in messages
            ]
            await asyncio.gather(*sent)
            if sent:
                await consumer.commit()


PEERS = {"everloop": everloop, "faust": bare_faust, "aiokafka": bare_aiokafka}

if __name__ == "__main__":
    PEERS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
