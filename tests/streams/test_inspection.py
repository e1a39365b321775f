"""What only views read becomes a dead letter as well, when it cannot be read."""

import pytest

from schemas.dead_letters import DeadLetterEvent
from schemas.serialization import decode
from schemas.topics import DEAD_LETTERS, TOPICS, Topic
from streams.processors.inspection import Inspection, inspections
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import NewRecord

CASES = [
    pytest.param(inspection, topic, id=topic.name)
    for inspection in inspections(())
    for topic in inspection.topics
]


@pytest.mark.parametrize(("inspection", "topic"), CASES)
def test_a_record_that_cannot_be_read_is_one_dead_letter(
    log: EmbeddedLog, inspection: Inspection, topic: Topic
) -> None:
    log.append([NewRecord(topic.name, b"k", b"{not json")])
    runner = EmbeddedRunner(log, inspection, "t")
    while runner.run_once():
        pass
    runner.close()
    (letter,) = [decode(DeadLetterEvent, r.value) for r in read_all(log, DEAD_LETTERS.name)]
    assert (letter.payload.topic, letter.payload.processor) == (
        topic.name,
        inspection.name,
    )


def test_every_topic_of_events_is_read_by_some_processor_or_the_sink_of_dead_letters() -> None:
    from infra.config.settings import Settings
    from infra.installation.processors import all_processors

    read = {topic.name for processor in all_processors(Settings()) for topic in processor.topics}
    assert set(TOPICS) - read <= {DEAD_LETTERS.name}
