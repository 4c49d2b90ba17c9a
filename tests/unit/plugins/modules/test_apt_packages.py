# SPDX-License-Identifier: Apache-2.0
"""How old the package lists count as."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.modules import apt_packages


@pytest.mark.parametrize(
    ("age_s", "least_s", "most_s"),
    [
        (500.0, 0.0, 600.0),
        # Read before the clock was put back: nobody knows when.
        (-3600.0, float("inf"), float("inf")),
    ],
)
def test_the_age_of_the_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, least_s: float, most_s: float
) -> None:
    (tmp_path / "mirror_Packages").touch()
    os.utime(tmp_path, (time.time() - age_s, time.time() - age_s))
    monkeypatch.setattr(apt_packages, "LISTS", tmp_path)
    assert least_s <= apt_packages.lists_age_s() <= most_s


def test_no_lists_are_older_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt_packages, "LISTS", tmp_path)
    assert apt_packages.lists_age_s() == float("inf")
