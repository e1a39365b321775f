"""Tests that train; they run where the extra `learn` is installed (`make test-all`)."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the trainers warn: they do so of whatever is not installed, and of one another."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained model."""
    from tests.training.tiny import make_model

    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep the machine's other core for whoever else tests."""
    import torch

    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(mode=False)
