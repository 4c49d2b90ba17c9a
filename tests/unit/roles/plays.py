# SPDX-License-Identifier: Apache-2.0
"""A play on this machine, for tests of a role's tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def run_play(folder: Path, play: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a play on localhost, with the inventory, the cache and the home in a folder; return how it ended."""
    (folder / "hosts.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n", encoding="utf-8")
    (folder / "play.yml").write_text(play, encoding="utf-8")
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", str(folder / "hosts.yml"), *arguments),
            *("-e", f"ansible_python_interpreter={sys.executable}", str(folder / "play.yml")),
        ],
        cwd=REPO,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
