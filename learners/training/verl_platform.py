"""The CPU as a platform of verl.

Only verl imports this module: the variable `VERL_USE_EXTERNAL_MODULES` names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

# verl calls these on every accelerator; torch lacks them for the CPU.
torch.cpu.empty_cache = lambda: None
torch.cpu.set_rng_state = torch.set_rng_state


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """The CPU as an accelerator of verl."""

    @property
    def device_name(self) -> str:
        """Torch's name of the device."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """The device's name again: a CPU here has no particular vendor."""
        return "cpu"

    @property
    def device_module(self) -> Any:
        """Torch's namespace of the device."""
        return torch.cpu

    def is_available(self) -> bool:
        """Return True: every machine has a CPU."""
        return True

    def current_device(self) -> Any:
        """Return the device."""
        return "cpu"

    def device_count(self) -> int:
        """Return 1: the process sees one CPU."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Do nothing: there is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Do nothing: the CPU runs nothing apart from the caller."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch's random numbers."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch's random numbers."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Do nothing: the allocator of the system has no settings."""

    def empty_cache(self) -> None:
        """Do nothing: nothing is cached."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:  # noqa: ARG002
        """Return no numbers: a CPU has no CUDA capability."""
        return (None, None)

    def communication_backend_name(self) -> str:
        """Return torch's communication backend for CPUs."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that hides accelerators, which verl reads."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: there is no profiler."""
        yield

    def profiler_start(self) -> None:
        """Do nothing: there is no profiler."""

    def profiler_stop(self) -> None:
        """Do nothing: there is no profiler."""

    def ray_resource_name(self) -> str:
        """Return Ray's name of the device."""
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: tensors are not shared between devices."""
        return False

    def cudart(self) -> None:
        """Return None: there is no CUDA."""
        return
