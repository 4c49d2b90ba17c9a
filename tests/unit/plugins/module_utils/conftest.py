# SPDX-License-Identifier: Apache-2.0
"""What the tests of the engine's programs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def launch(tmp_path: Path) -> dict[str, Any]:
    """The description of a start as the role renders it, with its directories below the test's own."""
    weights = tmp_path / "w"
    weights.mkdir()
    (weights / ".gb10-manifest.json").write_text("{}")
    return {
        "container": "vllm-m", "image": "gb10/i:1", "weights": str(weights), "ports": [8000], "address": "10.211.0.11",
        "require_rdma": False, "drop_caches_seconds": 0, "tether_key": "", "gpu_devices": False,
        "cache": str(tmp_path / "lib" / "cache" / "0123" / "m"),
        "progress": str(tmp_path / "run" / "m.progress"), "memory_needed_gib": 0.0, "memory_floor_gib": 0.0,
        "engine": "native", "nodes": 2, "model": "m", "unit": "vllm-m.service", "rank": 1,
        "starts": str(tmp_path / "run" / "m.starts"), "restart_burst": 3, "restart_interval_seconds": 600,
        "last_failure": str(tmp_path / "state" / "last_failure.json"), "network_env": str(tmp_path / "run" / "m.env"),
    }  # fmt: skip
