"""The processor as a platform of verl's. Only verl imports this, because
`VERL_USE_EXTERNAL_MODULES` names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

# verl asks these of every accelerator, and torch has them for all but this one
torch.cpu.empty_cache = lambda: None
torch.cpu.set_rng_state = torch.set_rng_state


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """The processor as verl's accelerator."""

    @property
    def device_name(self) -> str:
        """Name of torch's device."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """Nobody's in particular."""
        return "cpu"

    @property
    def device_module(self) -> Any:
        """torch's namespace of the device."""
        return torch.cpu

    def is_available(self) -> bool:
        """Return True: there always is one."""
        return True

    def current_device(self) -> Any:
        """Return the device."""
        return "cpu"

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing runs apart from the caller."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The system's allocator has none."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:  # noqa: ARG002
        """Return nothing: it has none."""
        return (None, None)

    def communication_backend_name(self) -> str:
        """Return torch's backend for processors."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that hides accelerators, which verl reads."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:  # noqa: ARG002
        """Mark nothing."""
        yield

    def profiler_start(self) -> None:
        """There is none."""

    def profiler_stop(self) -> None:
        """There is none."""

    def ray_resource_name(self) -> str:
        """Return Ray's name of it."""
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return none."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: tensors are not shared between devices."""
        return False

    def cudart(self) -> None:
        """Return None: there is no CUDA."""
        return
