# SPDX-License-Identifier: Apache-2.0
"""Which pairs are run, and what each environment is made of."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import ansible_versions

LOCK = """ansible==12.3.0 \\
    --hash=sha256:01 \\
    # via -r requirements.in
ansible-core==2.19.14 \\
    --hash=sha256:02
ansible-runner==2.4.3 \\
    --hash=sha256:03
importlib-resources==7.1.0 ; python_full_version < '3.12' \\
    --hash=sha256:04
resolvelib==1.2.1 \\
    --hash=sha256:05
"""


def test_an_environment_has_the_other_release_and_no_linters() -> None:
    text = (ansible_versions.REPO / "requirements.in").read_text(encoding="utf-8")
    found = ansible_versions.requirements(text, "2.21", "14")
    assert found[:2] == ["ansible-core==2.21.*", "ansible==14.*"]
    assert not [each for each in found[2:] if each.startswith(("ansible>", "ansible-core", "ansible-lint", "#"))]
    assert {"ansible-runner>=2.4", "pytest", "pytest-xdist", "hypothesis", "rich"} <= set(found)
    assert not set(found) & {"molecule>=25.1", "mypy", "types-docker"}


def test_other_packages_are_those_of_the_lock() -> None:
    assert ansible_versions.constraints(LOCK) == ["ansible-runner==2.4.3", "importlib-resources==7.1.0"]


def test_a_python_that_is_not_there_is_reported() -> None:
    run, left_out = ansible_versions.pairs(["3.12", "3.11", "3.8"])
    assert run == [("2.21", "3.12"), ("2.20", "3.12"), ("2.19", "3.11"), ("2.19", "3.12")]
    assert "ansible-core 2.21, Python 3.14: not run, there is none here" in left_out
    assert len(run) + len(left_out) == sum(len(pythons) for _package, pythons in ansible_versions.RELEASES.values())


def test_an_interpreter_is_known_by_what_it_says_of_itself() -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert ansible_versions.interpreters([sys.executable, "/bin/false"]) == {own: sys.executable}


def test_what_was_rendered_is_known_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "unit").write_text("x", encoding="utf-8")
    first = ansible_versions.digest(tmp_path)
    assert first == ansible_versions.digest(tmp_path)
    (tmp_path / "a" / "unit").rename(tmp_path / "a" / "unit2")
    assert first != ansible_versions.digest(tmp_path)
