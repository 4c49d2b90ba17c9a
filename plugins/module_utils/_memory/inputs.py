# SPDX-License-Identifier: Apache-2.0
"""What the memory model reads on a node: a model's config.json, the size of its weight files, the node's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._memory import settings
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import UnknownGeometryError

MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")
#: There where NVIDIA's driver is loaded.
DRIVER = Path("/proc/driver/nvidia/version")
#: Lists units that are active and match the patterns that follow, one a line.
ACTIVE_UNITS = ("systemctl", "list-units", "--plain", "--no-legend", "--state=active")


def read_config(path: Path) -> dict[str, Any]:
    """Return the ``config.json`` at a path, or in the directory at that path.

    :raises UnknownGeometryError: it is not there, or may not be read
    :raises ValueError: a sentence that says what is wrong with it
    """
    file = path if path.suffix == ".json" else path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownGeometryError([f"{file} cannot be read on this node: {error.strerror}."]) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config_json: {file} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"config_json: {file} holds no JSON object.")  # noqa: TRY004
    return values


def not_moved_yet(folder: Path) -> bool:
    """Return whether a model's directory has neither a configuration nor weights, as before its first transfer."""
    return folder.suffix != ".json" and not (folder / "config.json").exists() and not weights_there_gib(folder)


def device_here(driver: Path = DRIVER) -> str:
    """Return what an engine on this node runs on: without NVIDIA's driver only a CPU build starts."""
    return settings.CUDA if driver.exists() else settings.CPU


def node_memory(params: dict[str, Any], meminfo: Path = MEMINFO, cpuinfo: Path = CPUINFO) -> tuple[float, float | None]:
    """Return the node's total and what the engine will find free; None for what its size suggests.

    On a node that serves (``serving``, which is taken out), what is free now is not what will be free. A ``device``
    that is left to the node is filled in, and for the CPU build what the processor has.

    :raises ValueError: ``/proc/meminfo`` was needed and cannot be read
    """
    serving = params.pop("serving", False)
    if params["device"] == settings.AUTO:
        params["device"] = device_here()
    total, available = params["mem_total_gib"], params["mem_available_gib"]
    if total is not None:
        return total, available
    try:
        total, free = settings.meminfo_gib(meminfo.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{meminfo} cannot be read on this node: {error.strerror}. Give mem_total_gib.") from error
    if params["device"] == settings.CPU:
        params["cpu_flags"] = tuple(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else None
    if available is None and not serving:
        available = min(total, settings.available_on_idle_node(free, params["reclaim_gib"], params["device"]))
    return total, available


def weights_there_gib(folder: Path) -> float:
    """Return the size of the weight files in a directory, without a consolidated second copy; 0 when there are none."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")]
    return sum(sizes) / 2**30
