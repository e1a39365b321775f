"""Code that a model wrote is graded by what it does, and can do little else."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from learners import sandbox
from learners.graders import GradedAnswer, grader
from learners.sandbox import MOST_OUTPUT, run_program

DOUBLE = {
    "function": "double",
    "cases": [{"args": [2], "result": 4}, {"args": [[1]], "result": [1, 1]}],
}
RIGHT = "def double(x):\n    return x + x\n"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (RIGHT, 1.0),
        (
            "<think>easy</think>Here:\n```python\nprint('no')\n```\nor"
            f" better\n```python\nprint(1)\n{RIGHT}```\n",
            1.0,
        ),
        ("def double(x):\n    return 4\n", 0.0),
        ("def double(x):\n    return (1, 1) if x == [1] else 4.0\n", 1.0),
        ("def double(x):\n    raise ValueError\n", 0.0),
        ("def treble(x):\n    return x\n", 0.0),
        ("def double(x)", 0.0),
        ("import os\nos._exit(0)\n", 0.0),
        ("import sys\nsys.exit(0)\n", 0.0),
        ("while True: pass\n", 0.0),
        ("def double(x):\n    return type('E', (), {'__eq__': lambda *_: True})()\n", 0.0),
        ("", 0.0),
    ],
)
def test_a_function_is_graded_by_its_results(
    text: str, reward: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "learners.graders.run_program",
        lambda program, given: run_program(program, given, timeout_s=2.0),
    )
    assert grader("code@1")(GradedAnswer(text, expected=DOUBLE)) == reward


def test_a_program_is_graded_by_what_it_prints() -> None:
    cases = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "4 4\n", "stdout": "8"}]
    program = "a, b = map(int, input().split())\nprint(a + b)\n"
    assert grader("code@1")(GradedAnswer(program, expected={"cases": cases})) == 1.0
    assert grader("code@1")(GradedAnswer("print(5)", expected={"cases": cases})) == 0.0


@pytest.mark.parametrize("expected", [None, "4", {}, {"function": "double", "cases": []}])
def test_without_cases_nothing_is_earned(expected: Any) -> None:
    assert grader("code@1")(GradedAnswer(RIGHT, expected=expected)) == 0.0


def test_time_memory_and_output_are_limited() -> None:
    begun = time.monotonic()
    assert run_program("import time\ntime.sleep(60)", timeout_s=0.5).status is None
    assert time.monotonic() - begun < 30
    assert run_program("x = bytearray(2**31)").status not in (0, None)
    assert len(run_program("print('x' * 10**8)").output) <= MOST_OUTPUT


def test_what_it_starts_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sandbox, "_jail", tuple
    )  # as on a machine that lets no user make namespaces
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w').close()"
    assert (
        run_program(
            f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])",
            timeout_s=0.5,
        ).status
        is None
    )
    time.sleep(2.5)
    assert not mark.exists()


def test_the_environment_is_empty_and_the_folder_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "open sesame")
    done = run_program(
        "import os\nprint(os.environ.get('SECRET'), os.listdir('.'))\nopen('left', 'w').write('x')"
    )
    assert (done.status, done.output) == (0, "None []\n")


@pytest.mark.skipif(not sandbox._jail(), reason="this machine lets no user make namespaces")
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = (
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('reached')"
        )
        assert run_program(reach).output == ""
        socket.create_connection(("127.0.0.1", port), 2).close()
