"""The folders are importable, and nobody else's."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("folder", ["infra", "learners", "research_society", "schemas", "streams"])
def test_no_other_distribution_owns_a_folder_of_ours(folder: str) -> None:
    owners = set(packages_distributions().get(folder, ["everloop"]))
    assert owners == {"everloop"}, f"{folder} is also installed by {owners - {'everloop'}}"
