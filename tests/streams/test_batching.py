"""Examples of batch learners become manifests, and a manifest gives exactly its examples again."""

from datetime import timedelta

from schemas.commands import Command, CommandEvent
from schemas.envelope import AnyEvent
from schemas.examples import Example, ExampleEvent, SftExample
from schemas.manifests import Manifest
from schemas.rollouts import Split
from schemas.serialization import decode
from schemas.topics import COMMANDS, EXAMPLES
from streams.processors.batcher import BatchConfig, Batching, OpenBatch, examples_of
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import Log, read_all
from streams.storage.partitions import partition_of
from streams.storage.records import NewRecord, Outgoing, Record
from tests import events

TARGET = "junior_researcher_llm"


def conversation(
    number: int, target: str = TARGET, split: Split = "train", reward: float = 0.5
) -> NewRecord:
    messages = [{"role": "user", "content": str(number)}, {"role": "assistant", "content": "yes"}]
    example = Example(
        target=target,
        split=split,
        reward=reward,
        reward_revision=1,
        source_event_ids=[events.started("r").event_id],
        body=SftExample(node="geneticist", messages=messages),
    )
    return Outgoing.of(
        EXAMPLES, target, ExampleEvent(rollout_id="r", time=events.START, payload=example)
    ).record()


def order(**more: object) -> NewRecord:
    command = Command.model_validate({"target": TARGET, "action": "train", **more})
    return Outgoing.of(COMMANDS, TARGET, CommandEvent(time=events.START, payload=command)).record()


FOUR = BatchConfig(examples=4)


def run(log: EmbeddedLog, config: BatchConfig = FOUR) -> None:
    runner = EmbeddedRunner(log, Batching("sft", [TARGET], config), "test")
    while runner.run_once():
        pass
    runner.close()


def manifests(log: Log) -> list[Manifest]:
    orders = [decode(CommandEvent, record.value).payload for record in read_all(log, COMMANDS.name)]
    return [order.manifest for order in orders if order.manifest is not None]


def reasons(log: Log) -> list[str]:
    """Return why batches were closed."""
    orders = [decode(CommandEvent, record.value).payload for record in read_all(log, COMMANDS.name)]
    return [order.reason for order in orders if order.manifest is not None]


def numbers(log: Log, manifest: Manifest) -> list[int]:
    found = [event.payload.body for event in examples_of(log, manifest)]
    return [int(body.messages[0]["content"]) for body in found if isinstance(body, SftExample)]


def test_every_example_is_in_one_manifest_whatever_lies_between(log: EmbeddedLog) -> None:
    for number in range(10):
        log.append(
            [
                conversation(number),
                conversation(number, "another"),
                conversation(number, split="validation"),
            ]
        )
        log.append([events.new_record(events.example(["a", "b"], 0, 0.5), TARGET)])
        log.append([NewRecord(EXAMPLES.name, TARGET.encode(), b"{broken")])
        if number == 5:
            run(log)
    run(log)
    first, second = manifests(log)
    assert (first.examples, first.number, second.examples, second.number) == (4, 1, 4, 2)
    assert (numbers(log, first), numbers(log, second)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert (
        first.sha256
        != second.sha256
        == Manifest.model_validate_json(second.model_dump_json()).sha256
    )


def test_a_manifest_gives_no_examples_of_another_target_in_the_same_partition(
    log: EmbeddedLog,
) -> None:
    partitions = EXAMPLES.partitions
    ours = partition_of(TARGET.encode(), partitions)
    names = (f"other-{number}" for number in range(1000))
    neighbour = next(name for name in names if partition_of(name.encode(), partitions) == ours)
    for number in range(4):
        log.append([conversation(number), conversation(number + 100, neighbour)])
    run(log)
    (closed,) = manifests(log)
    assert numbers(log, closed) == [0, 1, 2, 3]


def test_an_order_closes_a_batch_that_is_not_full_and_an_empty_one_stays(log: EmbeddedLog) -> None:
    log.append([order(reason="now")])
    log.append([conversation(0), conversation(1)])
    run(log)
    log.append([order(reason="now"), order(), order(action="pause")])
    run(log)
    (closed,) = manifests(log)
    assert reasons(log) == ["now"]
    assert numbers(log, closed) == [0, 1]
    log.append([order(manifest=closed.model_dump(mode="json"))])
    run(log)
    assert len(manifests(log)) == 2, "what is asked for again is not closed again"


def test_a_batch_is_closed_when_its_first_example_is_old_enough(log: EmbeddedLog) -> None:
    config = BatchConfig(examples=100, seconds=60, least=3)
    log.append([conversation(0)])
    run(log, config)
    assert manifests(log) == [], "one example is too few, however old"
    log.append([conversation(1), conversation(2)])
    run(log, config)
    (closed,) = manifests(log)
    assert numbers(log, closed) == [0, 1, 2]


def test_time_runs_from_the_first_example_of_a_batch() -> None:
    batching = Batching("sft", [TARGET], BatchConfig(examples=3, seconds=60))
    state, deadlines = None, []
    for number in range(4):
        event = decode(ExampleEvent, conversation(number).value)
        later = event.model_copy(update={"time": events.START + timedelta(seconds=number)})
        outcome = batching.handle(
            state, later, Record(EXAMPLES.name, 0, number, number, TARGET.encode(), b"")
        )
        state = outcome.state
        deadlines.append(outcome.deadline)
    first, fourth = (events.START + timedelta(seconds=60 + number) for number in (0, 3))
    assert deadlines == [first, first, None, fourth]


def test_a_batch_that_time_closes_says_so_and_what_is_in_it_and_a_repeat_has_the_same_id() -> None:
    batching = Batching("sft", [TARGET], BatchConfig(examples=100, seconds=60, least=2))
    full = OpenBatch(examples=2, ranges={0: (3, 7)}, number=4)
    now = events.at(61)
    (closed,) = batching.expire(full, TARGET, now).records
    (again,) = batching.expire(full, TARGET, now).records
    (other,) = batching.expire(full, "another", now).records
    event = closed.event
    assert (event.time, event.payload.target, event.payload.action) == (now, TARGET, "train")
    assert event.payload.reason == "60 s since its first example"
    manifest = event.payload.manifest
    assert (manifest.examples, manifest.number, manifest.head) == (2, 5, "sft")
    assert [(r.partition, r.first, r.last) for r in manifest.ranges] == [(0, 3, 7)]
    assert event.event_id == again.event.event_id
    assert event.event_id != other.event.event_id


def closed_by_time(head: str = "sft", number: int = 4) -> str:
    """Return the id of the event that closes a batch after its time."""
    batching = Batching(head, [TARGET], BatchConfig(examples=100, seconds=60))
    open_batch = OpenBatch(examples=2, ranges={0: (3, 7)}, number=number)
    return batching.expire(open_batch, TARGET, events.at(61)).records[0].event_id


def test_batches_of_two_heads_or_of_one_after_the_other_are_closed_by_other_events() -> None:
    assert len({closed_by_time(), closed_by_time(head="rl"), closed_by_time(number=5)}) == 3


def test_what_is_not_for_a_batch_leaves_its_time_as_it_was() -> None:
    batching = Batching("sft", [TARGET], BatchConfig(examples=100, seconds=60))
    state = OpenBatch(examples=2, ranges={0: (3, 7)}, closes=events.at(60))
    other: list[AnyEvent] = [
        events.example(["a", "b"], 0, 0.5),
        CommandEvent(payload=Command(target=TARGET, action="pause")),
    ]
    for event in other:
        outcome = batching.handle(state, event, events.record(event, 9, TARGET))
        assert (outcome.records, outcome.deadline) == ((), events.at(60))


def test_a_batch_of_one_and_one_of_many_pages_give_all_their_examples(log: EmbeddedLog) -> None:
    log.append([conversation(number) for number in range(1001)])
    run(log, BatchConfig(examples=1000))
    log.append([order()])
    run(log, BatchConfig(examples=1000))
    many, one = manifests(log)
    assert numbers(log, many) == list(range(1000))
    assert numbers(log, one) == [1000]


def test_a_batch_too_small_for_time_to_close_stays_as_it_was() -> None:
    batching = Batching("sft", [TARGET], BatchConfig(examples=100, seconds=60, least=2))
    small = OpenBatch(examples=1, ranges={0: (0, 0)})
    outcome = batching.expire(small, TARGET, events.at(61))
    assert (outcome.records, outcome.state) == ((), small)


def test_a_deadline_from_before_time_closed_no_batch_closes_none() -> None:
    batching = Batching("sft", [TARGET], BatchConfig(examples=100))
    state = OpenBatch(examples=1, ranges={0: (0, 0)}, closes=events.START)
    assert batching.expire(state, TARGET, events.START).records == ()


def test_a_batch_is_closed_when_rewards_have_dropped(log: EmbeddedLog) -> None:
    config = BatchConfig(examples=200, drop=0.05, least=10)
    log.append([conversation(number, reward=0.9) for number in range(200)])
    log.append([conversation(number, reward=0.9) for number in range(200, 300)])
    run(log, config)
    assert len(manifests(log)) == 1, "nothing has changed"
    log.append([conversation(number, reward=0.2) for number in range(300, 390)])
    run(log, config)
    first, second = manifests(log)
    assert first.examples == 200
    assert 110 <= second.examples < 190
    last = [decode(CommandEvent, record.value).payload for record in read_all(log, COMMANDS.name)][
        -1
    ]
    assert last.reason.startswith("rewards dropped, to ")


def test_a_drop_closes_a_batch_as_soon_as_it_has_the_least_examples(log: EmbeddedLog) -> None:
    config = BatchConfig(examples=200, drop=0.05, least=60)
    log.append([conversation(number, reward=0.9) for number in range(200)])
    log.append([conversation(number, reward=0.0) for number in range(200, 300)])
    run(log, config)
    _, second = manifests(log)
    assert second.examples == 60


def test_an_order_without_a_reason_closes_a_batch_with_one(log: EmbeddedLog) -> None:
    log.append([conversation(0), order()])
    run(log)
    log.append([order()])
    run(log)
    assert "" not in reasons(log)


def test_an_order_of_another_head_leaves_the_batch_open_and_its_method_is_passed_on(
    log: EmbeddedLog,
) -> None:
    log.append([conversation(0)])
    log.append([order(arguments={"head": "rl", "method": "ppo"})])
    run(log)
    assert manifests(log) == []
    log.append([order(arguments={"head": "sft", "method": "sft"})])
    run(log)
    orders = [decode(CommandEvent, record.value).payload for record in read_all(log, COMMANDS.name)]
    assert orders[-1].manifest is not None
    assert orders[-1].arguments["method"] == "sft"
