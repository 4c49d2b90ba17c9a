#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: health_probe
short_description: Verify on the head that a served model yields tokens
version_added: 0.1.0
description:
  - Runs on the head. Reads this node's rank as M(gb10.cluster.rank_state) does, and asks the API for
    its health, its models, its metrics and a completion that must yield tokens; optionally for a
    tool call, for reasoning, and for a needle in a long text.
  - With O(wait=true) it waits as long as the start makes progress (a new phase, another shard, a line
    unlike any before, bytes read, compilers at work) and gives up when there is none for
    O(stall_seconds), or as soon as this node's unit ends. It never gives up by the clock.
  - It sees its own node and the API alone. M(gb10.cluster.cluster_probe) runs it together with
    M(gb10.cluster.rank_state) on all nodes, and sees every rank.
  - Changes nothing.
options:
  poll_seconds:
    description:
      - Without O(wait), the longest time to wait for the unit or the API's health to change before reporting.
      - With O(wait), the time between two looks.
    type: float
    default: 0
  wait:
    description: Whether to wait for a settled state, and to fail unless it is V(ready).
    type: bool
    default: false
  stall_seconds:
    description: Seconds without progress after which a start counts as stuck.
    type: int
    default: 600
  restarts_allowed:
    description:
      - How many times the unit may end and be restarted by systemd during the wait, when no log shows a cause
        that the next run will meet again.
    type: int
    default: 0
extends_documentation_fragment:
  - gb10.cluster.probe
  - gb10.cluster.probe.look
  - gb10.cluster.probe.api
  - gb10.cluster.attributes.reads
attributes:
  check_mode:
    details: Looks once, without waiting and without failing.
"""

EXAMPLES = r"""
- name: Wait until the model on one node serves
  gb10.cluster.health_probe:
    name: my-model
    served_name: nvidia/nemotron-3-nano
    url: http://127.0.0.1:8000
    api_key: "{{ vllm_api_key }}"
    wait: true
  become: true

- name: Ask the running engine for more than tokens
  gb10.cluster.health_probe:
    name: my-model
    served_name: qwen3.5-397b
    tool_call: true
    reasoning: true
    needle_tokens: 32000
    mtp_tokens: 2
  become: true
  register: probe
"""

RETURN = r"""
state:
  description:
    - V(absent), V(starting), V(ready), V(wrong_model), V(degraded), V(dead) or V(wedged), as far as this node
      and the API show it.
  returned: always
  type: str
  sample: ready
phase:
  description: Phase of the start that the engine's log shows.
  returned: always
  type: str
  sample: load
progress:
  description: The phase in words, with its count.
  returned: always
  type: str
  sample: loading weights, 3 of 10
seconds:
  description: Seconds since the unit's start, 0 when it does not run.
  returned: always
  type: float
stalled:
  description: Whether the start made no progress for O(stall_seconds).
  returned: always
  type: bool
diagnosis:
  description: Explanations, the likeliest first, each with node, name, cause, remedy and line.
  returned: always
  type: list
  elements: dict
warnings_found:
  description: What does not stop the engine but is worth knowing, in the same form.
  returned: always
  type: list
  elements: dict
summary:
  description: The state in one sentence.
  returned: always
  type: str
rank:
  description: This node's rank as M(gb10.cluster.rank_state) returns it.
  returned: always
  type: dict
api:
  description: Health, models, canaries (tokens, seconds to the first token, seconds) and metrics of the API.
  returned: always
  type: dict
pulse:
  description: Unit and health in short, to be handed to O(seen_pulse) of the next call.
  returned: always
  type: list
  elements: str
"""

import platform
import time
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import Wanted, probe_api
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import ProbeClient, probe_front
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import (
    RANK_ARGUMENTS,
    LogLimits,
    RankReader,
    rank_names,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.run import runner

ARGUMENTS: dict[str, dict[str, Any]] = {
    **RANK_ARGUMENTS,
    "url": {"type": "str", "default": "http://127.0.0.1:8000"},
    "proxy_port": {"type": "int", "default": 0},
    "served_name": {"type": "str", "required": True},
    "api_key": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "ca_path": {"type": "path"},
    "runner": {"type": "str", "choices": ["generate", "pooling"], "default": "generate"},
    "canary": {"type": "bool", "default": True},
    "canary_tokens": {"type": "int", "default": 8, "no_log": False},
    "silence_seconds": {"type": "int", "default": 120},
    "tool_call": {"type": "bool", "default": False},
    "reasoning": {"type": "bool", "default": False},
    "needle_tokens": {"type": "int", "default": 0, "no_log": False},
    "mtp_tokens": {"type": "int", "default": 0, "no_log": False},
    "rdma": {"type": "bool", "default": False},
    "wait": {"type": "bool", "default": False},
    "stall_seconds": {"type": "int", "default": 600},
    "restarts_allowed": {"type": "int", "default": 0},
}


class Prober:
    """Looks at this node's rank and at the API, once or until the state has settled."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self.params = params
        self.names = rank_names(params, platform.node())
        self.reader = RankReader(runner(module), self.names, LogLimits(shown_lines=params["tail_lines"]))
        self.client = ProbeClient(
            params["url"],
            api_key=params["api_key"],
            silence_seconds=float(params["silence_seconds"]),
            validate_certs=params["validate_certs"],
            ca_path=params["ca_path"],
        )
        asked = ("served_name", "canary", "canary_tokens", "needle_tokens", "tool_call", "reasoning")
        self.wanted = Wanted(pooling=params["runner"] == "pooling", **{name: params[name] for name in asked})
        self.expected = {name: params[name] for name in ("served_name", "mtp_tokens", "rdma", "canary")}

    def pulse(self) -> tuple[str, ...]:
        return (*self.reader.pulse(), str(self.client.get("/health").status))

    def settle(self, seen: tuple[str, ...], end_s: float) -> tuple[str, ...]:
        """Returns the pulse as soon as it differs from the one seen, or when the time is over."""
        pulse = self.pulse()
        while pulse == seen and time.monotonic() < end_s:
            time.sleep(min(1.0, max(0.05, end_s - time.monotonic())))
            pulse = self.pulse()
        return pulse

    def look(self) -> tuple[dict[str, Any], dict[str, Any], probe.ClusterState]:
        rank = self.reader.report()
        api = probe_api(self.client, self.params["url"], self.wanted)
        if api["health"] == 200 and self.params["proxy_port"]:
            api["front"] = probe_front(urlsplit(self.params["url"]).port or 80, self.params["proxy_port"])
        state = probe.merge([rank], api, head=self.names.node, expected=self.expected)
        return rank, api, state

    def wait(self) -> tuple[dict[str, Any], dict[str, Any], probe.ClusterState, float]:
        """Looks until the state is settled; the last figure is the seconds without progress, 0 if settled."""
        watch = probe.StallWatch()
        restarts: int | None = None
        pulse: tuple[str, ...] = ()
        while True:
            pulse = self.settle(pulse, time.monotonic() + (self.params["poll_seconds"] or 5.0))
            rank, api, state = self.look()
            if restarts is None:
                restarts = int(rank["unit"].get("restarts", 0))
            judged = probe.state_with_restarts(rank, restarts, self.params["restarts_allowed"])
            if judged != rank["state"]:
                rank = {**rank, "state": judged}
                state = probe.merge([rank], api, head=self.names.node, expected=self.expected)
            if state.state != probe.STARTING:
                return rank, api, state, 0.0
            quiet_s = watch.quiet_seconds(probe.progress_token([rank], api), time.monotonic())
            if quiet_s >= self.params["stall_seconds"]:
                return rank, api, state, quiet_s


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    prober = Prober(module)
    waiting = module.params["wait"] and not module.check_mode
    quiet_s = 0.0
    if waiting:
        rank, api, state, quiet_s = prober.wait()
    else:
        seen = module.params["seen_pulse"]
        if module.params["poll_seconds"] and not module.check_mode:
            before = tuple(seen) if seen is not None else prober.pulse()
            prober.settle(before, time.monotonic() + module.params["poll_seconds"])
        rank, api, state = prober.look()
    result = {
        **state.as_dict(),
        "seconds": rank["unit"].get("seconds", 0.0),
        "stalled": quiet_s > 0,
        "rank": rank,
        "api": api,
        "pulse": [*prober.reader.pulse(), str(api["health"])],
        "changed": False,
    }
    result["warnings_found"] = result.pop("warnings")
    if waiting and quiet_s:
        module.fail_json(msg=probe.stall_sentence(state, quiet_s), **result)
    if waiting and state.state != probe.READY:
        module.fail_json(msg=state.summary, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
