# SPDX-License-Identifier: Apache-2.0
"""How old the package lists count as."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.modules import apt_packages

from .conftest import Run


class Apt:
    """Installed packages and their marks; what an installation brings along."""

    def __init__(self) -> None:
        self.installed = {"rsync", "dgx-release", "nvidia-driver"}
        self.automatic = {"dgx-release", "libc6"}
        self.brings = {"earlyoom": {"earlyoom", "libgcc-s1"}}
        self.asked: list[str] = []

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer a command."""
        if command[0] == "dpkg-query":
            return 0, "".join(f"ii  {name}\n" for name in sorted(self.installed)) + "rc  removed\n", ""
        if command[:2] == ["apt-mark", "showauto"]:
            return 0, "\n".join(sorted(self.automatic)), ""
        if command[0] == "apt-mark":
            self.automatic -= set(command[2:])
        verb = next(word for word in command[1:] if word in ("manual", "install", "update"))
        self.asked.append(verb)
        if verb == "install":
            names = [word for word in command[command.index("install") + 1 :] if not word.startswith("-")]
            if unknown := [name for name in names if name not in self.brings]:
                return 100, "", f"E: Unable to locate package {unknown[0]}"
            for name in names:
                self.installed |= self.brings[name]
        return 0, "", ""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Stand a package manager in for this machine's, with fresh lists."""
    made = Apt()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mirror_Packages").touch()
    monkeypatch.setattr(apt_packages, "LISTS", tmp_path / "lists")
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    return made


def test_what_is_missing_is_installed_and_all_that_came_with_it_noted(apt: Apt, run_module: Run) -> None:
    result = run_module(apt_packages, names=["rsync", "earlyoom"])
    assert (result["changed"], result["missing"], apt.asked) == (True, ["earlyoom"], ["install"])
    assert sorted(files.read_json(files.BEFORE / "manifest.json")["packages"]) == ["earlyoom", "libgcc-s1"]
    assert run_module(apt_packages, names=["rsync", "earlyoom"])["changed"] is False


def test_an_alternative_is_enough(apt: Apt, run_module: Run) -> None:
    assert run_module(apt_packages, names=["chrony|rsync"])["changed"] is False
    assert apt.asked == []


def test_a_package_that_is_nowhere_is_named_after_the_lists_were_fetched(apt: Apt, run_module: Run) -> None:
    result = run_module(apt_packages, names=["no-such"])
    assert "could not install no-such (exit code 100)" in result["msg"]
    assert "Unable to locate package no-such" in result["msg"]
    assert apt.asked == ["install", "update", "install"]


def test_check_mode_reports_and_installs_nothing(apt: Apt, run_module: Run) -> None:
    result = run_module(apt_packages, check=True, names=["earlyoom"], manual=["dgx-"])
    assert (result["missing"], result["marked"], apt.asked) == (["earlyoom"], ["dgx-release"], [])


def test_the_platform_is_marked_once(apt: Apt, run_module: Run) -> None:
    result = run_module(apt_packages, names=["rsync"], manual=["dgx-", "nvidia-"])
    assert (result["changed"], result["marked"]) == (True, ["dgx-release"])
    assert list(files.read_json(files.BEFORE / "manifest.json")["automatic"]) == ["dgx-release"]
    assert run_module(apt_packages, names=["rsync"], manual=["dgx-", "nvidia-"])["changed"] is False
    assert apt.automatic == {"libc6"}


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
