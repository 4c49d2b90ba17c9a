# SPDX-License-Identifier: Apache-2.0
"""What the lab writes under .lab/<name>/ and reads back."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lab import access, cli, plan, rootfs, settings
from lab.errors import LabError
from lab.shaping import Rates

SUBNETS = plan.choose_subnets("lab", [])
NODES = plan.plan_nodes("lab", 3, SUBNETS)
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIOSeZwj3XqS8dXQB/nv597MwFthpZLqXkfslHQTkyfmy"
SETTINGS = settings.Settings("lab", 3, SUBNETS, Rates(50_000_000, None), uplink=False)


def test_known_hosts_is_what_ssh_looks_up(tmp_path: Path) -> None:
    text = access.known_hosts(NODES[:2], {"gx10-1": [f"ssh-ed25519 {KEY} root@gx10-1"], "gx10-2": []})
    assert text == f"gx10-1,10.210.0.11,10.211.0.11 ssh-ed25519 {KEY}\n"
    file = tmp_path / "known_hosts"
    file.write_text(text, encoding="ascii")
    for name, found in (("10.210.0.11", True), ("gx10-1", True), ("10.211.0.11", True), ("10.210.0.12", False)):
        done = subprocess.run(["ssh-keygen", "-F", name, "-f", str(file)], capture_output=True, check=False)
        assert (done.returncode == 0) is found, name


def test_ssh_takes_the_config_and_is_strict(tmp_path: Path) -> None:
    ssh = shutil.which("ssh")
    assert ssh, "the lab needs an ssh client"
    file = tmp_path / "ssh_config"
    file.write_text(access.ssh_config(NODES, tmp_path), encoding="utf-8")
    done = subprocess.run([ssh, "-G", "-F", str(file), "gx10-3"], capture_output=True, text=True, check=True)
    options = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert options["hostname"] == "10.210.0.13"
    assert options["user"] == "ansible"
    assert options["stricthostkeychecking"] in ("true", "yes")
    assert options["userknownhostsfile"] == f"{tmp_path}/known_hosts"


@pytest.mark.parametrize("count", [1, 3])
def test_the_inventory_has_one_head(count: int, tmp_path: Path) -> None:
    group = yaml.safe_load(access.inventory(NODES[:count], tmp_path))["all"]["children"]["gx10"]
    assert list(group["children"]["head"]["hosts"]) == ["gx10-1"]
    assert len(group["children"]["workers"].get("hosts", {})) == count - 1
    assert group["children"]["head"]["hosts"]["gx10-1"]["gb10_fabric_address"] == "10.211.0.11"
    assert "StrictHostKeyChecking=yes" in group["vars"]["ansible_ssh_common_args"]


def test_hosts_json(tmp_path: Path) -> None:
    document = json.loads(access.hosts_json("lab", NODES, tmp_path))
    assert document["hosts"][2] == {
        "name": "gx10-3",
        "index": 3,
        "ansible_host": "10.210.0.13",
        "gb10_fabric_address": "10.211.0.13",
        "container": "lab-gx10-3",
    }


def test_settings_come_back_as_they_went(tmp_path: Path) -> None:
    assert settings.load(tmp_path) is None
    kept = SETTINGS.with_links("gx10-2", ("fabric",), cut=True)
    settings.save(kept, tmp_path)
    assert settings.load(tmp_path) == kept


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "lab", "nodes": "many"}'])
def test_damaged_settings_are_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / settings.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match="is damaged"):
        settings.load(tmp_path)


def test_cables_are_pulled_and_plugged_in_one_by_one() -> None:
    cut = SETTINGS.with_links("gx10-2", ("fabric",), cut=True).with_links("gx10-2", ("mgmt",), cut=True)
    assert cut.cut == {"gx10-2": ("mgmt", "fabric")}
    assert cut.is_cut("gx10-2", "mgmt")
    assert not cut.is_cut("gx10-1", "mgmt")
    half = cut.with_links("gx10-2", ("mgmt",), cut=False)
    assert half.cut == {"gx10-2": ("fabric",)}
    assert half.with_links("gx10-2", plan.NETS, cut=False).cut == {}
    assert SETTINGS.cut == {}
    assert dataclasses.replace(half, cut={}) == SETTINGS


def test_a_file_is_written_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "x"
    access.write(path, "one")
    access.write(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_package_lists() -> None:
    text = "# note\n\ndocker.io\nperftest?  # not everywhere\n"
    assert rootfs.read_packages(text) == [("docker.io", False), ("perftest", True)]


@pytest.mark.parametrize("path", [rootfs.NODE_PACKAGES, rootfs.NODE_BASE_PACKAGES])
def test_the_package_lists_hold_names(path: Path) -> None:
    names = [name for name, _unused in rootfs.read_packages(path.read_text(encoding="utf-8"))]
    assert names
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").replace(".", "").replace("+", "").isalnum() for name in names)


def test_a_key_changes_with_every_input() -> None:
    keys = {rootfs.key_of("a"), rootfs.key_of("b"), rootfs.key_of("a", ["b"]), rootfs.key_of(["a", "b"])}
    assert len(keys) == 4
    assert rootfs.key_of("a", Path("/x")) == rootfs.key_of("a", Path("/x"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shell", "gx10-1", "--name", "x"], {"name": "x", "command": []}),
        (["shell", "gx10-1", "--", "ls", "-l"], {"name": "lab", "command": ["ls", "-l"]}),
        (["cut", "gx10-1"], {"net": "both"}),
        (["cut", "gx10-1", "--net", "mgmt"], {"net": "mgmt"}),
        (["up", "--nodes", "8", "--unshaped"], {"nodes": 8, "unshaped": True, "uplink": None}),
    ],
)
def test_the_command_line(words: list[str], expected: dict[str, object]) -> None:
    options = vars(cli.parser().parse_args(words))
    assert {key: options[key] for key in expected} == expected


def test_a_refusal_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--name", "No"]) == 1
    assert capsys.readouterr().err.startswith("lab status: A lab cannot be called 'No'")
