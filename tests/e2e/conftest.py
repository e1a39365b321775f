"""End-to-end tests run the example, unless they write a configuration of their own."""

import pytest

from tests.e2e.installation import EXAMPLE


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_CONFIG", EXAMPLE)
