# SPDX-License-Identifier: Apache-2.0
"""The site of the stand-in engine that the converge benchmark brings up, and what it measures there."""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from benchmarks import converge, stand_in, swap
from lab import access
from lab.plan import SubnetPair, plan_nodes


@pytest.mark.parametrize("nodes", [1, 4, 8])
def test_the_site_has_its_nodes_its_model_and_the_stand_in(tmp_path: Path, nodes: int) -> None:
    subnets = SubnetPair(IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24"))
    made = plan_nodes("converge", nodes, subnets)
    (tmp_path / "inventory.yml").write_text(access.inventory(made, tmp_path), encoding="utf-8")
    site = stand_in.write_site(tmp_path, nodes)
    hosts = json.loads((site / "hosts.yml").read_text(encoding="utf-8"))["all"]
    groups = hosts["children"]["gx10"]["children"]
    assert hosts["vars"]["model"] == stand_in.FIRST
    assert sum(len(group.get("hosts", {})) for group in groups.values()) == nodes
    found: dict[str, Any] = {}
    # In the order in which Ansible reads them: a later file wins.
    for path in sorted((site / "group_vars/gx10").iterdir()):
        found |= yaml.safe_load(path.read_text(encoding="utf-8"))
    spec = json.loads((site / "group_vars/model_tiny_qwen3.yml").read_text(encoding="utf-8"))["model_spec"]
    assert (spec["name"], spec["nodes"]) == (stand_in.FIRST, nodes)
    assert ms.validate(spec)[1] == []
    assert list(found["gb10_images"]) == [spec["image"]]
    assert found["gb10_lab_dir"] == str(tmp_path)
    assert found["fabric_manage"] is False, "what inventories/lab turns off is off here too"


def test_one_node_has_no_engine_for_several() -> None:
    assert "engine" not in stand_in.model(stand_in.FIRST, 1)["model_spec"]
    assert stand_in.model(stand_in.SECOND, 2)["model_spec"]["engine"] == "ray"


def test_a_part_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_words, **_options: SimpleNamespace(returncode=1))
    with pytest.raises(swap.BenchError, match=r"`python -m lab up --name converge-2 --nodes 2 .*` ended with 1"):
        stand_in.bring_up(2)


@pytest.mark.parametrize(("changed", "keep"), [([], False), ([], True), (["gx10-1: host : One"], False)])
def test_four_runs_of_each_size(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changed: list[str],
    keep: bool,
) -> None:
    runs: list[tuple[str, str]] = []
    down: list[int] = []

    def measure(_site: Any, inventories: list[str], playbook: str, _extra: Any) -> dict[str, Any]:
        runs.append((inventories[0], playbook))
        figures = {"seconds": 20.0, "ping_round_seconds": 2.0, "ping_rounds": 10.0, "tasks": 7, "by_host": {}}
        return {**figures, "changed": changed, "by_play": {}, "longest": []}

    def swapped(_site: Any, converge: str, there: str, back: str) -> dict[str, float]:
        runs.append((there, back))
        assert converge == "playbooks/status.yml"
        return {"ping_round_s": 2.0, "ours_until_engine_starts_s": 30.0}

    monkeypatch.setattr(converge, "measure", measure)
    monkeypatch.setattr(swap, "measure", swapped)
    monkeypatch.setattr(stand_in, "bring_up", lambda nodes: Path(f"/lab/{nodes}"))
    monkeypatch.setattr(stand_in, "take_down", down.append)
    into = tmp_path / "figures.json"
    words = ["--stand-in", "2", "--stand-in", "3", "--json", str(into), *(["--keep"] if keep else [])]
    assert converge.main(words) == (1 if changed else 0)
    said = capsys.readouterr()
    assert runs[:2] == [("/lab/2", "site.yml")] * 2
    if changed:
        assert "site.yml changed gx10-1: host : One in a run after the first" in said.err
        assert down == []
        return
    assert runs[2:4] == [
        ("/lab/2", "playbooks/status.yml"),
        ("swap-model.yml -e model=tiny-nemotronh", "swap-model.yml -e model=inventory"),
    ]
    assert len(runs) == 8
    assert down == ([] if keep else [2, 3])
    assert "| 3 | unchanged | 20.0 | 7 | 2.0 | 10.0 |" in said.out
    assert "| 3 | swap | 30.0 |  | 2.0 | 15.0 |" in said.out
    assert json.loads(into.read_text(encoding="utf-8"))["2"]["swap"]["ping_rounds"] == 15.0
