#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rank_state
short_description: Read the state of one rank of a served model on its own node
version_added: 0.1.0
description:
  - Reads what systemd, Docker, the journal, the kernel's log and C(/proc) of this node know of one
    rank of a model, the phase and progress of its start from the engine's log, and the known
    failures that its logs show.
  - Changes nothing. A node without the unit, without Docker or without systemd gives the state V(absent).
  - Needs root to read the journal and to ask Docker.
options:
  poll_seconds:
    description:
      - Longest time to wait for the unit to change before reporting.
      - V(0) reports at once. A change of the unit's state or run ends the wait within a second.
    type: float
    default: 0
extends_documentation_fragment:
  - gb10.cluster.probe
  - gb10.cluster.probe.look
  - gb10.cluster.attributes.reads
attributes:
  check_mode:
    details: Looks once, without waiting.
"""

EXAMPLES = r"""
- name: Read this node's rank
  gb10.cluster.rank_state:
    name: my-model
    node: "{{ inventory_hostname }}"
  become: true
  register: rank

- name: Show where its start is
  ansible.builtin.debug:
    msg: "{{ rank.rank.state }}, {{ rank.rank.log.phase }} {{ rank.rank.log.done }}/{{ rank.rank.log.total }}"
"""

RETURN = r"""
rank:
  description: Everything that is known of the rank.
  returned: always
  type: dict
  contains:
    node:
      description: Name of the node.
      type: str
      sample: gx10-3
    state:
      description: V(absent), V(stopped), V(starting), V(running) or V(dead).
      type: str
      sample: running
    unit:
      description: Name, states, result, restarts, exit status, run and seconds since its start, from systemd.
      type: dict
    container:
      description: Whether it runs, its image and image id, since when.
      type: dict
    read_s:
      description: When this was read, by the node's clock, in seconds since the epoch.
      type: float
    log:
      description:
        - Phase, progress (done of total), last line, figures (C(facts)) with their units, MTP wiring and
          NCCL's network, as the engine's log shows them; C(complete) is false when its middle was left out.
      type: dict
    findings:
      description: Known failures in the logs, likeliest cause first, each with name, kind, cause, remedy and line.
      type: list
      elements: dict
    tail:
      description: The newest lines of the log.
      type: list
      elements: str
    activity:
      description: Process ids of running compilers and MiB read from disk by the container's processes.
      type: dict
    mem_available_gib:
      description: MemAvailable of the node in GiB.
      type: float
      sample: 17.4
    mem_total_gib:
      description: MemTotal of the node in GiB.
      type: float
      sample: 119.7
    others:
      description: Units of other models that run on this node, read where this one's does not.
      type: list
      elements: str
    kernel_log_readable:
      description: Whether the kernel's log could be read; a container without the right cannot.
      type: bool
pulse:
  description: The unit's state and run in short, to be handed to O(seen_pulse) of the next call.
  returned: always
  type: list
  elements: str
"""

import platform
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import (
    RANK_ARGUMENTS,
    LogLimits,
    RankReader,
    rank_names,
)
from ansible_collections.gb10.cluster.plugins.module_utils._probe.run import runner


def main() -> None:
    module = AnsibleModule(argument_spec=RANK_ARGUMENTS, supports_check_mode=True)
    params = module.params
    names = rank_names(params, platform.node())
    reader = RankReader(runner(module), names, LogLimits(shown_lines=params["tail_lines"]))
    seen = tuple(params["seen_pulse"]) if params["seen_pulse"] is not None else reader.pulse()
    end_s = time.monotonic() + (0 if module.check_mode else params["poll_seconds"])
    while reader.pulse() == seen and time.monotonic() < end_s:
        time.sleep(min(1.0, max(0.05, end_s - time.monotonic())))
    pulse = reader.pulse()
    module.exit_json(changed=False, rank=reader.report(), pulse=list(pulse))


if __name__ == "__main__":
    main()
