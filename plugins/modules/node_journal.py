#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_journal
short_description: Read the journal of a node's engine units
version_added: 0.1.0
description:
  - Reads the newest lines of the units that match, without escapes, a progress bar in its last state, and with
    secrets masked. M(gb10.cluster.journal_merge) merges the journals of several nodes.
  - Changes nothing.
options:
  units:
    description: Names of units; C(*) stands for anything.
    type: list
    elements: str
    default: ["vllm-*.service"]
  since:
    description: Oldest instant, in the words of C(journalctl --since), such as V(10 min ago) or V(today).
    type: str
    default: ""
  lines:
    description: How many of the newest lines to return.
    type: int
    default: 200
  grep:
    description: Regular expression that a line must match; case matters only when it has capitals.
    type: str
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read what went wrong in the last hour
  gb10.cluster.node_journal:
    since: 1 hour ago
    grep: error|refused
  become: true
  register: journal
"""

RETURN = r"""
entries:
  description: Time in microseconds of the epoch, unit and text of each line, oldest first.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._probe.journal import parse_entries
from ansible_collections.gb10.cluster.plugins.module_utils._probe.run import runner

#: systemd 252, of `--unit=` with a pattern that matches nothing.
NO_SUCH_UNIT = "Failed to add filter for units: No data available"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": ["vllm-*.service"]},
            "since": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 200},
            "grep": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    want = module.params
    command = ["journalctl", "--no-pager", "--quiet", "--all", "--output=json"]
    command += ["--output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT", f"--lines={want['lines']}"]
    command += [f"--unit={unit}" for unit in want["units"]]
    command += [f"--since={want['since']}"] if want["since"] else []
    command += [f"--grep={want['grep']}"] if want["grep"] else []
    code, out, err = runner(module)(command)
    # With --grep, no match is an exit status of 1 without output; a pattern that no unit matches has words of its own.
    if code != 0 and err.strip() and NO_SUCH_UNIT not in err:
        module.fail_json(msg=f"journalctl refuses since={want['since']!r} or grep={want['grep']!r}: {err.strip()}")
    module.exit_json(changed=False, entries=parse_entries(out, newest_first=bool(want["grep"])))


if __name__ == "__main__":
    main()
