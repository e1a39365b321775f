"""What a figure was measured on, and how figures are summed up."""

import os
import platform
import sqlite3
from collections.abc import Sequence
from importlib.metadata import version
from statistics import quantiles
from typing import Any

import psutil

PACKAGES = (
    "everloop",
    "fastapi",
    "faust-streaming",
    "httpx",
    "pydantic",
    "river",
    "uvicorn",
    "vowpalwabbit",
)


def machine() -> dict[str, Any]:
    """Return processor, memory and the versions that matter."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {package: version(package) for package in PACKAGES},
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile of durations, in milliseconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {"p50_ms": round(cuts[49] * 1000, 3), "p99_ms": round(cuts[98] * 1000, 3)}


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
