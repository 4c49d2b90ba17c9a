# SPDX-License-Identifier: Apache-2.0
"""What the role monitor writes for one box without an address on a fabric, and for boxes that have one."""

from __future__ import annotations

import json
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.lint.collection import REPO

ROLE = REPO / "roles/monitor"


def rendered(name: str, hosts: dict[str, dict[str, Any]]) -> str:
    """Return a template of the role for the first of the hosts, which is the server and the head."""
    node = next(iter(hosts))
    values = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8")),
        **yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8")),
    }
    variables = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in values.items()}
    variables |= {
        "inventory_hostname": node,
        "hostvars": hosts,
        "groups": {"gx10": list(hosts), "monitor": [node], "head": [node]},
        "monitor_engine_api_key": "",
        "gb10_weights_root": "/models",
        "gb10_state_dir": "/var/lib/gb10",
        **hosts[node],
    }
    template = trust_as_template((ROLE / "templates" / name).read_text(encoding="utf-8"))
    return str(Templar(DataLoader(), variables=variables).template(template))


def targets(hosts: dict[str, dict[str, Any]]) -> list[str]:
    jobs = yaml.safe_load(rendered("prometheus.yml.j2", hosts))["scrape_configs"]
    return [target for job in jobs for each in job["static_configs"] for target in each["targets"]]


def test_one_box_without_a_fabric_is_asked_over_loopback() -> None:
    hosts: dict[str, dict[str, Any]] = {"box": {}}
    assert targets(hosts) == ["127.0.0.1:9100", "127.0.0.1:8000", "127.0.0.1:9090"]


def test_boxes_are_asked_over_the_fabric() -> None:
    hosts = {"a": {"gb10_fabric_address": "10.1.0.1"}, "b": {"gb10_fabric_address": "10.1.0.2"}}
    assert targets(hosts) == ["10.1.0.1:9100", "10.1.0.2:9100", "10.1.0.1:8000", "127.0.0.1:9090"]


def test_the_collector_is_given_the_addresses_that_there_are() -> None:
    template = "collect.json.j2"
    assert json.loads(rendered(template, {"box": {}}))["fabric_addresses"] == []
    assert json.loads(rendered(template, {"a": {"gb10_fabric_address": "10.1.0.1"}}))["fabric_addresses"] == [
        "10.1.0.1"
    ]
