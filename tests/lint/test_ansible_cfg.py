# SPDX-License-Identifier: Apache-2.0
"""The repository's ansible.cfg takes the inventories that owners type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lint.collection import REPO


@pytest.mark.parametrize(
    ("source", "content", "mode"),
    [
        ("gx10-1,gx10-2,", None, 0),
        ("hosts.sh", '#!/bin/sh\necho \'{"gx10": {"hosts": ["gx10-1", "gx10-2"]}}\'\n', 0o755),
        ("hosts.yml", "plugin: ansible.builtin.generator\nhosts: {name: 'gx10-{{ k }}'}\nlayers: {k: [1, 2]}\n", 0o644),
        ("hosts.ini", "[gx10]\ngx10-1\ngx10-2\n", 0o644),
        ("plain.yml", "all: {hosts: {gx10-1: , gx10-2: }}\n", 0o644),
    ],
)
def test_ansible_cfg_reads_every_kind_of_inventory(tmp_path: Path, source: str, content: str | None, mode: int) -> None:
    if content is not None:
        path = tmp_path / source
        path.write_text(content)
        path.chmod(mode)
        source = str(path)
    program = str(Path(sys.executable).with_name("ansible"))
    done = subprocess.run(
        [program, "all", "-i", source, "--list-hosts"],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["gx10-1", "gx10-2"]
