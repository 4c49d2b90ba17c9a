# SPDX-License-Identifier: Apache-2.0
"""Inventories of the lab's nodes that playbooks/init.yml writes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e import harness

LAB = harness.REPO / harness.INVENTORY


def tiny_model(boxes: int) -> dict[str, Any]:
    """Return the file of the lab's first model, for another number of boxes."""
    text = (LAB / "group_vars" / "model_tiny_qwen3.yml").read_text(encoding="utf-8")
    model: dict[str, Any] = yaml.safe_load(text)
    spec = model["model_spec"]
    name = f"{spec['name']}-{boxes}"
    spec |= {"name": name, "served_name": f"lab/{name}", "nodes": boxes}
    spec["serve"]["tensor-parallel-size"] = boxes
    return model


def inventory_by_init(
    folder: Path, model: str, nodes: Sequence[str] = harness.NODES, catalogue: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Return the inventory that init writes for nodes of the lab, with the lab's variables of the platform beside it.

    :param folder: an empty directory, in which the inventory and what it refers to are made.
    :param model: the model that init is asked for.
    :param nodes: in the order in which init is given their addresses.
    :param catalogue: files of models besides the lab's.
    """
    groups = yaml.safe_load((LAB / "hosts.yml").read_text(encoding="utf-8"))["all"]["children"]["gx10"]["children"]
    hosts = {name: host for group in groups.values() for name, host in group["hosts"].items()}
    images = yaml.safe_load((LAB / "group_vars" / "gx10" / "images.yml").read_text(encoding="utf-8"))["gb10_images"]
    made = folder / "inventories" / f"spark{len(nodes)}"
    # How the nodes are reached, init writes itself.
    shutil.copytree(LAB / "group_vars", made / "group_vars", ignore=shutil.ignore_patterns("connection.yml"))
    for each in catalogue:
        file = made / "group_vars" / f"model_{each['model_spec']['name'].replace('-', '_')}.yml"
        file.write_text(yaml.safe_dump(dict(each)), encoding="utf-8")
    known = {"base": "debian", "python": "python3", "steps": []}
    answers = {
        "init_nodes": [hosts[node]["ansible_host"] for node in nodes],
        "init_dir": str(folder / "inventories"),
        "init_user": "ansible",
        "init_private_key": str(harness.REPO / ".lab" / "lab" / "id_ed25519"),
        "init_known_hosts": str(folder / "known_hosts"),
        "init_accept_host_keys": True,
        "init_ssh_common_args": "-o IdentitiesOnly=yes",
        "init_fabric_interfaces": ["eth1"],
        "init_catalogue": [str(made / "group_vars" / "model_*.yml")],
        "init_images": {name: {**known, "vllm_version": image["vllm_version"]} for name, image in images.items()},
        "init_model": model,
    }
    harness.run("playbooks/init.yml", answers, inventory="localhost,")
    (folder / ".lab").symlink_to(harness.REPO / ".lab")
    return made
