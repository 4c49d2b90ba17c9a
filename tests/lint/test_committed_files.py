# SPDX-License-Identifier: Apache-2.0
"""No committed file names the machine that it was written on or the package index that it uses."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPO = Path(__file__).resolve().parents[2]
#: Too common to tell anything: a path with fewer parts than this is not looked for.
MIN_PARTS = 3


def committed() -> list[Path]:
    """Return the files that git tracks, links left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True, text=True)
    paths = (REPO / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def pip_sources() -> set[str]:
    """Return the hosts and local directories from which this machine's pip installs."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found = set()
    for line in listed.splitlines():
        name, _sign, value = line.partition("=")
        if not name.endswith(("index-url", "find-links", "index", "proxy", "trusted-host")):
            continue
        for word in str(ast.literal_eval(value)).split():
            parts = urlsplit(word)
            local = parts.scheme in ("", "file") and parts.path.startswith("/")
            found.add(parts.path.rstrip("/") if local else (parts.hostname or word))
    return found


def machine_words() -> set[str]:
    """Return what only this machine would have put into a file."""
    paths = {str(REPO), str(Path(sys.base_prefix))} - {"/usr", "/usr/local"}
    if len(Path.home().parts) >= MIN_PARTS:
        paths.add(str(Path.home()))
    return {path for path in paths if len(Path(path).parts) >= MIN_PARTS} | pip_sources()


def places(word: str) -> list[str]:
    """Return file:line of each committed line that holds a word as a whole."""
    pattern = re.compile(rf"(?<![\w.-]){re.escape(word)}(?![\w-])")
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if word in text:
            found += [
                f"{path.relative_to(REPO)}:{number}: {line.strip()[:100]}"
                for number, line in enumerate(text.splitlines(), 1)
                if pattern.search(line)
            ]
    return found


def test_no_path_of_this_machine_and_no_source_of_its_packages() -> None:
    found = [place for word in sorted(machine_words()) for place in places(word)]
    assert not found, "\n" + "\n".join(found)


def test_the_search_finds_what_is_there() -> None:
    assert any(place.startswith("LICENSE:") for place in places("Apache License"))


LOCKS = pytest.mark.parametrize("name", ["requirements.lock", "requirements-3.14.lock"])


@LOCKS
def test_the_lock_names_no_index(name: str) -> None:
    lock = (REPO / name).read_text(encoding="utf-8")
    assert not re.findall(r"\w+://\S+|^--?\w.*index.*|^--?\w.*find-links.*", lock, re.MULTILINE)


@LOCKS
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    lock = (REPO / name).read_text(encoding="utf-8").replace("\\\n", " ")
    packages = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    assert packages
    for line in packages:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", line), f"no exact version: {line[:80]}"
        assert "--hash=sha256:" in line, f"no hash: {line[:80]}"


def test_the_locks_differ_in_ansible_alone() -> None:
    """Python 3.14 needs a later ansible-core; whatever else is run is the same with every Python."""
    texts = [(REPO / name).read_text(encoding="utf-8") for name in ("requirements.lock", "requirements-3.14.lock")]
    pins = [dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)) for text in texts]
    assert set(pins[0]) == set(pins[1]), "`make lock` writes both"
    assert {name for name in pins[0] if pins[0][name] != pins[1][name]} == {"ansible", "ansible-core"}


@pytest.mark.parametrize("name", ["requirements.in", "galaxy.yml", "README.md", "Makefile"])
def test_wanted_files_are_committed(name: str) -> None:
    assert REPO / name in committed(), f"{name} is not committed"
