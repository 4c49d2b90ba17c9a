# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.ssh_identity with the real ssh-keygen, in a home of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.modules import ssh_identity

from .conftest import Run

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home of the only user that there is, beside a directory with a host key."""

    def account(name: str) -> Any:
        if name != "ann":
            raise KeyError(name)
        return SimpleNamespace(pw_dir=str(tmp_path / "home"), pw_uid=os.geteuid(), pw_gid=os.getegid(), pw_name="ann")

    (tmp_path / "home").mkdir()
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh" / "ssh_host_ed25519_key.pub").write_text("ssh-ed25519 HOST root@x\n", encoding="utf-8")
    monkeypatch.setattr(ssh_identity, "SSHD_DIR", tmp_path / "ssh")
    monkeypatch.setattr(pwd, "getpwnam", account)
    return tmp_path / "home"


def test_a_pair_is_made_once(home: Path, run_module: Run) -> None:
    first = run_module(ssh_identity, user="ann", comment="fabric")
    private = home / ".ssh" / "gb10_fabric"
    assert (first["changed"], first["path"], first["host_keys"]) == (True, str(private), ["ssh-ed25519 HOST"])
    assert first["public_key"].startswith("ssh-ed25519 ")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.with_name("gb10_fabric.pub").read_text(encoding="utf-8").split()[2] == "fabric"
    again = run_module(ssh_identity, user="ann", comment="fabric")
    assert (again["changed"], again["public_key"]) == (False, first["public_key"])


def test_a_lost_public_key_is_derived_from_the_private_one(home: Path, run_module: Run) -> None:
    first = run_module(ssh_identity, user="ann")
    (home / ".ssh" / "gb10_fabric.pub").unlink()
    again = run_module(ssh_identity, user="ann")
    assert (again["changed"], again["public_key"]) == (True, first["public_key"])
    assert (home / ".ssh" / "gb10_fabric.pub").exists()


def test_a_run_that_was_killed_after_the_public_key_makes_a_new_pair(home: Path, run_module: Run) -> None:
    first = run_module(ssh_identity, user="ann")
    (home / ".ssh" / "gb10_fabric").unlink()
    again = run_module(ssh_identity, user="ann")
    assert again["changed"] is True
    assert again["public_key"] != first["public_key"]


def test_check_mode_makes_nothing(home: Path, run_module: Run) -> None:
    result = run_module(ssh_identity, check=True, user="ann")
    assert (result["changed"], result["public_key"], list(home.iterdir())) == (True, "", [])


@pytest.mark.usefixtures("home")
def test_no_such_user(run_module: Run) -> None:
    assert "There is no user bob on this node" in run_module(ssh_identity, user="bob")["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own links as somebody else")
def test_a_link_to_roots_keys_is_refused(home: Path, tmp_path: Path, run_module: Run) -> None:
    (tmp_path / "root").mkdir()
    (home / ".ssh").symlink_to(tmp_path / "root")
    os.lchown(home / ".ssh", 4321, 4321)
    assert "refusing to follow the symbolic link '.ssh'" in run_module(ssh_identity, user="ann")["msg"]
    assert list((tmp_path / "root").iterdir()) == []


def test_the_key_is_removed(home: Path, run_module: Run) -> None:
    run_module(ssh_identity, user="ann")
    (home / ".ssh" / "id_ed25519").write_text("hers\n", encoding="utf-8")
    assert run_module(ssh_identity, check=True, user="ann", state="absent")["changed"] is True
    assert (home / ".ssh" / "gb10_fabric").exists()
    assert run_module(ssh_identity, user="ann", state="absent")["changed"] is True
    assert [path.name for path in (home / ".ssh").iterdir()] == ["id_ed25519"]
    gone = run_module(ssh_identity, user="ann", state="absent")
    assert (gone["changed"], gone["user"]) == (False, "ann")
