#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_status
short_description: Read what a node serves and how well
version_added: 0.1.0
description:
  - Reads the record of the active model, this node's rank as M(gb10.cluster.rank_state) does, memory, and the last
    recorded failure; on the node that serves the API also health, models, a completion and, from two looks at
    its metrics, the load.
  - Asks the node alone and reads no inventory. What a node does not have is reported as empty.
  - Changes nothing.
options:
  node:
    description: Name of this node in the inventory.
    type: str
    required: true
  api_key:
    description: Key of the API.
    type: str
  canary:
    description: Ask for a completion.
    type: bool
    default: true
  canary_tokens:
    description: Tokens of that completion.
    type: int
    default: 8
  silence_seconds:
    description: Seconds without a byte after which a completion counts as wedged.
    type: int
    default: 30
  window_seconds:
    description: Time between the two looks at the metrics.
    type: float
    default: 2
  record_path:
    description: File with the record of the active model.
    type: path
    default: /etc/gb10/engine/active.json
  state_dir:
    description: Directory of the project's state on the node.
    type: path
    default: /var/lib/gb10
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Look at the node
  gb10.cluster.node_status:
    node: "{{ inventory_hostname }}"
    api_key: "{{ vllm_api_key }}"
  become: true
  register: status
"""

RETURN = r"""
status:
  description: What M(gb10.cluster.cluster_status) reads.
  returned: always
  type: dict
  contains:
    record:
      description: The record of the active model; empty when nothing is served.
      type: dict
    coming:
      description: >-
        Short launch description of a model whose unit runs here in place of the recorded one, as during a swap; empty
        otherwise.
      type: dict
    units:
      description: Engine units that run here.
      type: list
      elements: str
    rank:
      description: >-
        This node's rank of the coming or the recorded model, as M(gb10.cluster.rank_state) returns it; empty on a node
        without one.
      type: dict
    api:
      description: As M(gb10.cluster.health_probe) returns it; on the head alone.
      type: dict
    load:
      description: Requests, KV cache and tokens per second; on the head alone.
      type: dict
    mem_available_gib:
      description: MemAvailable in GiB.
      type: float
    mem_total_gib:
      description: MemTotal in GiB.
      type: float
    mem_floor_gib:
      description: Start floor of the rank in GiB, from its launch description; null when there is none.
      type: float
    last_failure:
      description: Time, unit and reason, as the engine's program recorded them.
      type: dict
    swap:
      description: >-
        Models before and after, state, head and stall of a swap that is not decided on all nodes; empty otherwise.
      type: dict
    rolled_back:
      description: When, why, and from which model to which a swap was rolled back by the nodes; empty otherwise.
      type: dict
    watch:
      description: State of the watch, where there is one.
      type: dict
    leases:
      description: Runs that change the cluster now, as M(gb10.cluster.lease) names their holders; on the head alone.
      type: list
      elements: dict
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import summary
from ansible_collections.gb10.cluster.plugins.module_utils._engine.units import model_of
from ansible_collections.gb10.cluster.plugins.module_utils._node import lease
from ansible_collections.gb10.cluster.plugins.module_utils._node.files import read_json
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import Wanted, parse_metrics, probe_api
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import ProbeClient, probe_front
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import (
    LogLimits,
    RankReader,
    meminfo_gib,
    rank_names,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.run import runner
from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import load_of


def coming_of(record: dict[str, Any], units: list[str], launches: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the model that is started on this node in place of the recorded one: its launch description in short.

    Empty while the recorded model's unit runs, and where none of the running units has a launch description: it is not
    one of this collection's.
    """
    if record.get("unit") in units:
        return {}
    keys = ("model", "unit", "container", "served_name", "runner", "api_port", "proxy_port", "rank", "nodes")
    found = [launch for launch in launches.values() if launch.get("unit") in units and "rank" in launch]
    return {key: found[0].get(key) for key in keys} if found else {}


def ask(params: dict[str, Any], record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the API's report and its load."""
    url = f"http://127.0.0.1:{record.get('api_port', 8000)}"
    client = ProbeClient(url, api_key=params["api_key"], silence_seconds=float(params["silence_seconds"]))
    before, began_s = client.get("/metrics"), time.monotonic()
    load: dict[str, Any] = {}
    if before.status == 200:
        time.sleep(params["window_seconds"])
        after, ended_s = client.get("/metrics"), time.monotonic()
        if after.status == 200:
            load = load_of(parse_metrics(before.body), parse_metrics(after.body), ended_s - began_s)
    wanted = Wanted(
        served_name=str(record.get("served_name", "")),
        pooling=record.get("runner") == "pooling",
        canary=params["canary"],
        canary_tokens=params["canary_tokens"],
        metrics=False,
    )
    api = {**probe_api(client, url, wanted), "canary_wanted": params["canary"]}
    if api["health"] == 200:
        api["front"] = probe_front(int(record.get("api_port", 8000)), int(record.get("proxy_port") or 0))
    return api, load


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "api_key": {"type": "str", "no_log": True},
            "canary": {"type": "bool", "default": True},
            "canary_tokens": {"type": "int", "default": 8, "no_log": False},
            "silence_seconds": {"type": "int", "default": 30},
            "window_seconds": {"type": "float", "default": 2},
            "record_path": {"type": "path", "default": "/etc/gb10/engine/active.json"},
            "state_dir": {"type": "path", "default": "/var/lib/gb10"},
        },
        supports_check_mode=True,
    )
    params = module.params
    run = runner(module)
    record_path, state_dir = Path(params["record_path"]), Path(params["state_dir"])
    record = read_json(record_path)
    members = [str(each) for each in record.get("members", [])]
    status: dict[str, Any] = {
        "record": record,
        "coming": {},
        "units": [],
        "rank": {},
        "api": {},
        "load": {},
        "mem_available_gib": None,
        "mem_total_gib": None,
        "mem_floor_gib": None,
        "last_failure": {},
        "swap": summary(read_json(state_dir / "engine" / "swap.json")),
        "rolled_back": read_json(state_dir / "engine" / "swap_rolled_back.json"),
        "watch": read_json(state_dir / "watch" / "state.json"),
        "leases": lease.live(lease.FOLDER),
    }
    status.update(meminfo_gib(Path("/proc/meminfo").read_text(encoding="ascii")))
    code, out, _err = run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "vllm-*.service"]
    )
    status["units"] = [line.split()[0] for line in out.splitlines() if line.strip()] if code == 0 else []
    launches = {name: read_json(record_path.parent / f"{name}.json") for name in map(model_of, status["units"])}
    status["coming"] = coming_of(record, status["units"], launches)
    served = status["coming"] or (record if params["node"] in members else {})
    if served:
        model = str(served.get("model", ""))
        launch = launches.get(model) or read_json(record_path.parent / f"{model}.json")
        status["mem_floor_gib"] = launch.get("memory_floor_gib")
        names = rank_names({**served, "name": model, "node": params["node"]}, params["node"])
        status["rank"] = RankReader(run, names, LogLimits(shown_lines=5)).report()
        if served.get("rank") == 0 or (not status["coming"] and params["node"] == members[0]):
            status["api"], status["load"] = ask(params, served)
    # After the rank: its unit records why it ended before it counts as ended.
    status["last_failure"] = read_json(state_dir / "engine" / "last_failure.json")
    module.exit_json(changed=False, status=status)


if __name__ == "__main__":
    main()
