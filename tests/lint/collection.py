# SPDX-License-Identifier: Apache-2.0
"""Build the collection's tarball and install it as a user does, without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def call(*words: str, cwd: Path = REPO, env: Mapping[str, str] | None = None) -> str:
    """Run a command of the environment and return its output; fail with it."""
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build(directory: Path) -> Path:
    """Build the tarball into a directory and return its path."""
    call("ansible-galaxy", "collection", "build", "--force", "--output-path", str(directory))
    (tarball,) = directory.glob("gb10-cluster-*.tar.gz")
    return tarball


def install(tarball: Path, directory: Path) -> dict[str, str]:
    """Install a tarball below a directory; return the environment in which Ansible finds it there.

    What it depends on comes from the ansible package, and the ansible.cfg in force is empty.
    """
    directory.mkdir(exist_ok=True)
    config = directory / "empty.cfg"
    config.touch()
    env = {
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_COLLECTIONS_PATH": str(directory),
        "ANSIBLE_HOME": str(directory / "home"),
    }
    # --no-deps: they would be looked for on a server.
    words = ("ansible-galaxy", "collection", "install", "--no-deps", str(tarball), "-p", str(directory))
    call(*words, cwd=directory, env=env)
    return env
