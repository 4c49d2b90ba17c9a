#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_throughput
short_description: Measure how fast one node sends to another over the fabric
version_added: 0.1.0
description:
  - With O(state=serving) it starts a receiver that listens on O(address) only, for at most O(serve_seconds) seconds.
  - With O(state=measured) it sends to O(peer) and returns the rate that arrived there.
  - With O(state=stopped) it stops the receiver.
  - V(iperf3) measures TCP, V(ib_write_bw) of perftest measures RDMA.
options:
  state:
    description: What to do.
    type: str
    choices: [serving, measured, stopped]
    required: true
  tool:
    description: Tool that measures.
    type: str
    choices: [iperf3, ib_write_bw]
    default: iperf3
  address:
    description: This node's address on the fabric.
    type: str
  peer:
    description: The receiver's address.
    type: str
  hca:
    description: RDMA device of this node, for V(ib_write_bw).
    type: str
  seconds:
    description: Seconds to send.
    type: int
    default: 3
  streams:
    description: Parallel streams (V(iperf3)) or queue pairs (V(ib_write_bw)).
    type: int
    default: 8
  port:
    description: TCP port of the receiver.
    type: int
    default: 5201
  serve_seconds:
    description: Seconds after which the receiver ends.
    type: int
    default: 300
    aliases: [serve_s]
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
attributes:
  check_mode:
    details: Nothing is started or sent.
"""

EXAMPLES = r"""
- name: Send to the next node
  gb10.cluster.fabric_throughput:
    state: measured
    address: 10.211.0.11
    peer: 10.211.0.12
"""

RETURN = r"""
gbps:
  description: Rate that arrived, in Gb/s; 0 when nothing was measured.
  returned: when O(state=measured)
  type: float
error:
  description: Why nothing was measured; empty when something was.
  returned: when O(state=measured)
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.throughput import (
    MeasurementError,
    parse_ib_bandwidth,
    parse_iperf3,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.renamed import renamed

UNIT = "gb10-throughput"
ATTEMPTS = 5


def serve(module: AnsibleModule) -> None:
    """Start the receiver as a unit of its own that ends on time."""
    given = module.params
    stop(module)
    command = [
        "systemd-run", "--quiet", "--collect", f"--unit={UNIT}",
        "--property=ProtectSystem=strict", "--property=ProtectHome=yes",
        # iperf3 maps a buffer in a temporary file.
        "--property=PrivateTmp=yes",
        # Not RuntimeMaxSec= with Restart=always: systemd starts what it has ended on time again, without end.
        "timeout", str(given["serve_seconds"]), "sh", "-c", 'while :; do "$@"; sleep 0.1; done', "sh",
    ]  # fmt: skip
    if given["tool"] == "iperf3":
        command += ["iperf3", "--server", "--bind", given["address"], "--port", str(given["port"])]
    else:
        # perftest's receiver serves one sender and ends.
        command += ["ib_write_bw", "-d", given["hca"], "-p", str(given["port"]), "-F", "--report_gbits",
                    "-q", str(given["streams"]), "-D", str(given["seconds"])]  # fmt: skip
    code, _out, err = module.run_command(command)
    if code != 0:
        module.fail_json(msg=f"The receiver {given['tool']} could not be started: {err.strip()}")


def stop(module: AnsibleModule) -> None:
    module.run_command(["systemctl", "stop", f"{UNIT}.service"])
    module.run_command(["systemctl", "reset-failed", f"{UNIT}.service"])


def measure(module: AnsibleModule) -> float:
    """Send once; return Gb/s.

    Raises:
        MeasurementError: the tool did not measure.
    """
    given = module.params
    if given["tool"] == "iperf3":
        # Not --connect-timeout: with parallel streams iperf 3.12 then loses its sockets.
        command = [
            "timeout", str(given["seconds"] + 60),
            "iperf3", "--client", given["peer"], "--bind", given["address"], "--port", str(given["port"]),
            "--time", str(given["seconds"]), "--omit", "1", "--parallel", str(given["streams"]), "--json",
        ]  # fmt: skip
        _code, out, err = module.run_command(command)
        return parse_iperf3(out or err)
    command = [
        "ib_write_bw", "-d", given["hca"], "-p", str(given["port"]), "-F", "--report_gbits",
        "-q", str(given["streams"]), "-D", str(given["seconds"]), given["peer"],
    ]  # fmt: skip
    _code, out, err = module.run_command(command)
    return parse_ib_bandwidth(out if out.strip() else err)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["serving", "measured", "stopped"], "required": True},
            "tool": {"type": "str", "choices": ["iperf3", "ib_write_bw"], "default": "iperf3"},
            "address": {"type": "str"},
            "peer": {"type": "str"},
            "hca": {"type": "str"},
            "seconds": {"type": "int", "default": 3},
            "streams": {"type": "int", "default": 8},
            "port": {"type": "int", "default": 5201},
            "serve_seconds": {"type": "int", "default": 300, **renamed("serve_s")},
        },
        required_if=[
            ("state", "serving", ["address"]),
            ("state", "measured", ["address", "peer"]),
            ("tool", "ib_write_bw", ["hca"]),
        ],
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, gbps=0.0, error="nothing is sent in check mode")
    if module.params["state"] == "serving":
        serve(module)
        module.exit_json(changed=False)
    if module.params["state"] == "stopped":
        stop(module)
        module.exit_json(changed=False)
    error = ""
    for attempt in range(ATTEMPTS):
        try:
            module.exit_json(changed=False, gbps=round(measure(module), 3), error="")
        except MeasurementError as refused:
            error = str(refused)
        # The receiver takes one sender at a time, and needs a moment between two.
        time.sleep(0.5 * (attempt + 1))
    module.exit_json(changed=False, gbps=0.0, error=error)


if __name__ == "__main__":
    main()
