"""The ready file for Agent Lightning's trainer names settings that verl has."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[2] / "infra" / "lightning" / "verl.yaml"
ITS_OWN = ("hydra", "defaults", "agentlightning")
"""Sections that verl's configuration does not have."""


def test_every_setting_is_one_of_verls() -> None:
    hydra = pytest.importorskip("hydra")
    omegaconf = pytest.importorskip("omegaconf").OmegaConf
    ours: dict[str, Any] = yaml.safe_load(FILE.read_text())
    verl = find_spec("verl")
    assert verl is not None
    assert verl.origin is not None
    folder = str(
        Path(verl.origin).parent / "trainer" / "config"
    )  # verl itself is not imported: tests of PPO do so
    with hydra.initialize_config_dir(folder, version_base=None):
        known = hydra.compose("ppo_trainer")
    omegaconf.set_struct(known, value=True)
    merged = omegaconf.merge(known, {name: of for name, of in ours.items() if name not in ITS_OWN})
    assert merged.actor_rollout_ref.actor.optim.lr == 1e-6
    assert merged.actor_rollout_ref.actor.ppo_mini_batch_size == 4
    assert (merged.data.max_prompt_length, merged.data.max_response_length) == (4096, 2048)
    assert (merged.actor_rollout_ref.rollout.n, merged.trainer.total_epochs) == (2, 2)
    assert (merged.trainer.test_freq, merged.trainer.save_freq) == (5, 5)
