"""`everloop train` and `everloop trainings`, as a user runs them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from schemas.commands import CommandEvent
from schemas.serialization import decode_all
from schemas.topics import COMMANDS, EXAMPLES
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.e2e.installation import everloop, everloop_json
from tests.training.test_trainers import examples

CONFIGURATION = """
lora = false
base = "{base}"
steps = 4
batch = 8
micro_batch = 8
max_length = 128
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """Return an installation's log, with examples of `writer`."""
    with EmbeddedLog(tmp_path / "log.db") as opened:
        opened.append([Outgoing.of(EXAMPLES, "writer", event).record() for event in examples()])
        yield opened


@pytest.fixture
def quick(tmp_path: Path, base: Path) -> str:
    file = tmp_path / "sft.toml"
    file.write_text(CONFIGURATION.replace("{base}", str(base)))
    return str(file)


def test_a_run_by_hand_leaves_weights_that_load(
    log: EmbeddedLog, tmp_path: Path, quick: str
) -> None:
    done = everloop_json(tmp_path, "train", "sft", "--target", "writer", "--config", quick)
    assert done["examples"] == len(examples())
    assert done["metrics"]["steps"] == 4.0
    AutoModelForCausalLM.from_pretrained(done["folder"])
    again = everloop_json(tmp_path, "train", "sft", "--target", "writer", "--config", quick)
    assert again["job"] == done["job"]
    assert again["metrics"]["train_loss"] == done["metrics"]["train_loss"]
    assert everloop_json(tmp_path, "trainings") == [], (
        "what is run by hand is nobody else's business"
    )


def test_an_order_is_left_for_the_trainer(log: EmbeddedLog, tmp_path: Path, quick: str) -> None:
    done = everloop(tmp_path, "train", "sft", "--target", "writer", "--config", quick, "--order")
    assert done.returncode == 0, done.stderr
    (order,) = [e for r in read_all(log, COMMANDS.name) for e in decode_all(CommandEvent, r.value)]
    assert order.payload.manifest is not None
    assert (order.payload.action, order.payload.manifest.examples) == ("train", len(examples()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sft",), "--target is needed"),
        (("sft", "--target", "nobody", "--config", "{quick}"), "nobody has no sft examples"),
        (("ppo", "--target", "writer", "--config", "{quick}"), "writer has no rl examples"),
        (("sft", "--target", "writer"), "base"),
        (("sft", "--target", "writer", "--config", "/nowhere.toml"), "/nowhere.toml"),
        (
            ("sft", "--target", "writer", "--config", "{quick}", "--from", "yesterday"),
            "--from is 'yesterday'",
        ),
        (("sft", "--target", "writer", "--config", "{quick}", "--parent", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    log: EmbeddedLog, tmp_path: Path, quick: str, arguments: tuple[str, ...], said: str
) -> None:
    done = everloop(
        tmp_path, "train", *(argument.replace("{quick}", quick) for argument in arguments)
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
