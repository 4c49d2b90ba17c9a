# SPDX-License-Identifier: Apache-2.0
"""What the first process of a container prints: its threads never share a line."""

from __future__ import annotations

import sys
import threading

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import say


def speak(who: int) -> None:
    """Say 400 lines."""
    for number in range(400):
        say(f"{who} {number}")


def test_threads_that_speak_at_once_have_lines_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=speak, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"gb10: {k} {n}" for k in range(8) for n in range(400))
