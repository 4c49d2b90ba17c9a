# SPDX-License-Identifier: Apache-2.0
"""What a pull reports of the disk that it is unpacked to."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress
from ansible_collections.gb10.cluster.plugins.module_utils._node import files


def test_what_is_written_to_the_disk_is_progress_in_coarse_steps(tmp_path: Path) -> None:
    """A log that grows beside a pull which stands still must not keep it alive for ever."""
    status = tmp_path / "status.json"
    progress = Progress(status)
    seen = []
    for mib in (1, 15, 40, 8, 41, 64):
        progress.take_disk(mib * 2**20)
        progress.write()
        seen.append(files.read_json(status)["disk"] // 2**20)
    assert seen == [0, 0, 32, 32, 32, 64]
