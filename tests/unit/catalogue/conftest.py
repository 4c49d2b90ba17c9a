# SPDX-License-Identifier: Apache-2.0
"""Real runs of the playbooks against a copy of inventories/spark4 whose nodes do not exist.

``ssh`` is a program that notes its call and fails, so a test can show that no node was asked.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import models_page
from tests.unit.helper import made_once

REPO = Path(__file__).resolve().parents[3]
API_KEY = "an-api-key-that-nobody-may-see"


@dataclass(frozen=True)
class Run:
    """What one run of ansible-playbook left behind."""

    returncode: int
    output: str
    contacted: bool


@dataclass(frozen=True)
class Site:
    """A place to run playbooks from: an inventory, an empty directory of wheels, a deaf ssh."""

    folder: Path

    @property
    def inventory(self) -> Path:
        return self.folder / "spark4"

    def addresses(self) -> None:
        """Give the nodes addresses in a network that is not there, in place of the placeholders."""
        path = self.inventory / "hosts.yml"
        numbers = iter(range(1, 255))
        text = re.sub(r"CHANGE_ME$", lambda _match: f"10.255.255.{next(numbers)}", path.read_text(), flags=re.M)
        path.write_text(text)

    def run(self, playbook: str, *arguments: str, **environment: str) -> Run:
        """Run a playbook of the repository, or one given by its whole path, and return what it said."""
        mark = self.folder / "contacted"
        mark.unlink(missing_ok=True)
        ssh = self.folder / "ssh"
        ssh.write_text(f'#!/bin/sh\necho "$@" >> {mark}\nexit 255\n')
        ssh.chmod(0o755)
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                str(Path("playbooks") / playbook),
                f"--inventory={self.inventory}",
                *arguments,
            ],
            cwd=REPO,
            env={
                **{
                    key: value
                    for key, value in os.environ.items()
                    if not key.startswith(("ANSIBLE_", "GB10_", "VLLM_"))
                },
                "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_SSH_EXECUTABLE": str(ssh),
                "ANSIBLE_NOCOLOR": "1",
                "GB10_WHEELS_DIR": str(self.folder / "wheels"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr, mark.exists())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Site]:
    """Return a function that makes a new site."""

    def make() -> Site:
        folder = tmp_path_factory.mktemp("site")
        shutil.copytree(REPO / "inventories" / "spark4", folder / "spark4")
        (folder / "wheels").mkdir()
        return Site(folder)

    return make


@pytest.fixture(scope="session")
def rendered(site: Callable[[], Site], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Run]]:
    """Return a function that renders a model once, with placeholder addresses, and returns where and what was said."""

    @functools.cache
    def render(model: str) -> tuple[Path, Run]:
        with made_once(tmp_path_factory, f"rendered-{model}") as (folder, kept):
            where = folder / "out"
            if not kept:
                words = ("-e", f"model={model}", "-e", f"model_render_dir={where}")
                kept.update(asdict(site().run("render.yml", *words, VLLM_API_KEY=API_KEY)))
        run = Run(**kept)
        assert run.returncode == 0, run.output
        return where, run

    return render


@pytest.fixture(scope="session")
def catalogue() -> dict[str, dict[str, Any]]:
    """Return every model of the catalogue as written, by name."""
    found = {}
    for path in sorted((REPO / "playbooks" / "group_vars").glob("model_*.yml")):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"]
        assert f"model_{spec['name']}".replace("-", "_") == path.stem, f"{path.name} describes {spec['name']}"
        found[spec["name"]] = spec
    return found


@pytest.fixture(scope="session")
def images() -> dict[str, Any]:
    """Return the image catalogue with its pins filled in, as Ansible's templates would."""
    return models_page.images()
