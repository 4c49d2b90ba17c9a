# SPDX-License-Identifier: Apache-2.0
"""The collection works as built and installed, and its playbooks parse with every inventory."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.lint.collection import REPO, build, call, install

INVENTORIES = ("spark4", "spark2", "spark1", "lab")
PLAYBOOKS = sorted((REPO / "playbooks").glob("*.yml"))
ENTRIES = [REPO / "site.yml", REPO / "swap-model.yml"]


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(tarball, tmp_path_factory.mktemp("installed"))


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_playbooks_parse_in_the_clone(inventory: str) -> None:
    assert PLAYBOOKS
    call(
        "ansible-playbook",
        "--syntax-check",
        "-i",
        f"inventories/{inventory}",
        *(str(path) for path in [*ENTRIES, *PLAYBOOKS]),
        env={"ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )


def test_the_default_inventory_is_spark4() -> None:
    """`ansible-playbook swap-model.yml -e model=qwen397` works as typed, from the repository's root."""
    listed = call("ansible-inventory", "--graph", "gx10", env={"ANSIBLE_CONFIG": str(REPO / "ansible.cfg")})
    given = call(
        "ansible-inventory", "-i", "inventories/spark4", "--graph", "gx10",
        env={"ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
    )  # fmt: skip
    assert listed == given
    assert "|--@head:" in listed
    assert "|--@workers:" in listed


def test_playbooks_parse_when_installed(installed: dict[str, str], tmp_path: Path) -> None:
    inventory = str(REPO / "inventories" / "spark4")
    names = [f"gb10.cluster.{path.stem}" for path in PLAYBOOKS]
    assert {"gb10.cluster.site", "gb10.cluster.swap_model"} <= set(names)
    call("ansible-playbook", "--syntax-check", "-i", inventory, *names, cwd=tmp_path, env=installed)


def test_the_installed_playbooks_are_not_the_clones(installed: dict[str, str]) -> None:
    listed = call("ansible-galaxy", "collection", "list", "gb10.cluster", cwd=Path(os.sep), env=installed)
    assert installed["ANSIBLE_COLLECTIONS_PATH"] in listed
    assert str(REPO) not in listed.replace(str(REPO / ".venv"), "")


def test_the_tarball_holds_the_collection_and_no_more(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    for needed in (
        "MANIFEST.json",
        "LICENSE",
        "README.md",
        "meta/runtime.yml",
        *(f"playbooks/{path.name}" for path in PLAYBOOKS),
        *(f"roles/{path.parent.parent.name}/tasks/main.yml" for path in (REPO / "roles").glob("*/tasks/main.yml")),
        *(str(path.relative_to(REPO)) for path in (REPO / "playbooks" / "group_vars").rglob("*.yml")),
        *(str(path.relative_to(REPO)) for path in (REPO / "plugins").rglob("*.py")),
    ):
        assert needed in names, f"{needed} is missing from the tarball"
    unwanted = (
        ".venv",
        ".lab",
        ".collections",
        ".git",
        ".ansible",
        ".mypy_cache",
        ".ruff_cache",
        "reports",
        "__pycache__",
    )
    strays = sorted(name for name in names if any(part in unwanted for part in Path(name).parts))
    assert not strays, f"the tarball holds {', '.join(strays[:5])}: add them to build_ignore in galaxy.yml"
    assert tarball.stat().st_size < 8 * 2**20, f"the tarball has {tarball.stat().st_size / 2**20:.1f} MiB"


def test_what_the_collection_depends_on_is_in_the_lock(installed: dict[str, str]) -> None:
    """The ansible package of requirements.lock holds every collection that galaxy.yml names."""
    galaxy = yaml.safe_load((REPO / "galaxy.yml").read_text(encoding="utf-8"))
    listed = call("ansible-galaxy", "collection", "list", env=installed)
    for name in galaxy["dependencies"]:
        assert f"\n{name} " in listed, f"{name} is not in the environment"
