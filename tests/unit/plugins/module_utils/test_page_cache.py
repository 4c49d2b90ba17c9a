# SPDX-License-Identifier: Apache-2.0
"""The page cache is dropped while an engine starts, and no longer."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine import page_cache


def test_it_is_dropped_at_once_and_again_until_the_engine_serves(tmp_path: Path) -> None:
    target, serving = tmp_path / "drop_caches", tmp_path / "serving"
    found: list[int] = []

    def drop() -> None:
        found.append(page_cache.drop_until_serving(serving, os.getpid(), 0.05, target))

    thread = threading.Thread(target=drop)
    thread.start()
    for _time in range(2):
        # The file is there before its text is.
        while not target.exists() or target.read_text() != "3\n":
            time.sleep(0.01)
        target.unlink()
    serving.touch()
    thread.join()
    assert found[0] >= 2


def test_nothing_is_dropped_for_an_engine_that_serves_or_is_gone(tmp_path: Path) -> None:
    target = tmp_path / "drop_caches"
    assert page_cache.drop_until_serving(tmp_path / "serving", 2**22 + 1, 60.0, target) == 0
    (tmp_path / "serving").touch()
    assert page_cache.drop_until_serving(tmp_path / "serving", os.getpid(), 60.0, target) == 0
    assert not target.exists()


def test_the_background_process_is_no_child_and_its_failure_is_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise PermissionError(f"read-only; parent {os.getppid()}")

    page_cache.in_background(fail)
    said = ""
    while not said.endswith("\n"):
        said += capfd.readouterr().out
        time.sleep(0.01)
    words, _space, parent = said.rpartition(" ")
    assert words == "gb10: the page cache is not dropped: read-only; parent"
    assert int(parent) != os.getpid()
