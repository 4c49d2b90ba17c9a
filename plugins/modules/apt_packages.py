#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_packages
short_description: Install missing Debian packages
version_added: 0.1.0
description:
  - Asks C(dpkg-query) which of the named packages are missing and installs exactly those,
    without recommended ones, keeping the configuration files that are there.
  - Unlike M(ansible.builtin.apt) it needs no C(python3-apt) on the node, so that check mode also answers on a machine
    that has nothing but sshd and Python, and it notes every package that came with an installation, for
    M(gb10.cluster.owner_state) to remove exactly those.
  - The package lists are fetched only when something is missing and they are older than
    O(cache_valid_s), or when a missing package is not in them.
  - A node is asked for its packages until every one of O(names) has been seen there in this run.
options:
  names:
    description: >-
      Packages by name. A name may list alternatives with C(|); any one of them is enough, and the first is installed.
    type: list
    elements: str
    required: true
  manual:
    description: >-
      Regular expressions, matched from the start. Installed packages that match are marked as installed by hand, for
      C(apt autoremove) to spare them.
    type: list
    elements: str
    default: []
  cache_valid_s:
    description: Age in seconds up to which the package lists are taken as they are.
    type: int
    default: 86400
  lock_timeout_s:
    description: Seconds to wait for another package manager on the node (unattended upgrades) to finish.
    type: int
    default: 600
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Install what the node needs
  gb10.cluster.apt_packages:
    names:
      - earlyoom
      - rsync
      - chrony|systemd-timesyncd
"""

RETURN = r"""
missing:
  description: Packages that were absent before (in check mode, that would be installed).
  returned: success
  type: list
  elements: str
  sample: [earlyoom, iperf3]
marked:
  description: Packages that were (or in check mode would be) marked as installed by hand.
  returned: success
  type: list
  elements: str
cache_updated:
  description: Whether the package lists were fetched.
  returned: success
  type: bool
"""

import re
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

LISTS = Path("/var/lib/apt/lists")


def installed(module: AnsibleModule) -> set[str]:
    """Return the names of all packages that are unpacked and configured."""
    code, out, err = module.run_command(["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\\n"])
    if code != 0:
        module.fail_json(msg=f"dpkg-query failed, so the node's packages are unknown: {err.strip()}")
    # The first letter is what the owner wants (held packages say h), the second what is there.
    return {line.split()[1] for line in out.splitlines() if line[1:2] == "i"}


def to_mark(module: AnsibleModule, present: set[str]) -> list[str]:
    """Return the installed packages that O(manual) matches and that count as automatically installed, sorted."""
    patterns = [re.compile(pattern) for pattern in module.params["manual"]]
    names = {name for name in present if any(pattern.match(name) for pattern in patterns)}
    if not names:
        return []
    _code, out, _err = module.run_command(["apt-mark", "showauto"], check_rc=True)
    return sorted(names & set(out.split()))


def lists_age_s() -> float:
    """Return the age of the package lists in seconds; infinite when there are none, or the clock was put back since."""
    if not LISTS.is_dir() or not any(LISTS.glob("*_Packages*")):
        return float("inf")
    stamp = Path("/var/lib/apt/periodic/update-success-stamp")
    newest = max(path.stat().st_mtime for path in (LISTS, stamp) if path.exists())
    age_s = time.time() - newest
    return age_s if age_s >= 0 else float("inf")


def apt(module: AnsibleModule, *args: str) -> tuple[int, str]:
    """Run apt-get without questions; return its exit code and what it said last."""
    code, out, err = module.run_command(
        [
            "apt-get",
            "--yes",
            "--quiet",
            "-o",
            f"DPkg::Lock::Timeout={module.params['lock_timeout_s']}",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            *args,
        ],
        environ_update={"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C"},
    )
    return code, (err.strip() or out.strip())[-2000:]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "manual": {"type": "list", "elements": "str", "default": []},
            "cache_valid_s": {"type": "int", "default": 86400},
            "lock_timeout_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    present = installed(module)
    missing = [
        alternatives[0]
        for name in module.params["names"]
        for alternatives in [[word.strip() for word in name.split("|")]]
        if not present.intersection(alternatives)
    ]
    marked = to_mark(module, present)
    result: dict[str, Any] = {
        "changed": bool(missing or marked),
        "missing": missing,
        "marked": marked,
        "cache_updated": False,
        # For the action plugin alone, which takes it out.
        "installed": sorted(present),
        "diff": files.diff(
            "installed packages",
            "",
            "".join(f"{name}\n" for name in [*missing, *(f"{name} (marked as installed by hand)" for name in marked)]),
        ),
    }
    if module.check_mode:
        module.exit_json(**result)
    if marked:
        for name in marked:
            files.keep("automatic", name, None)
        module.run_command(["apt-mark", "manual", *marked], check_rc=True)
    if not missing:
        module.exit_json(**result)

    fresh = lists_age_s() < module.params["cache_valid_s"]
    code, said = (1, "") if not fresh else apt(module, "install", "--no-install-recommends", *missing)
    if code != 0:
        update_code, update_said = apt(module, "update")
        result["cache_updated"] = update_code == 0
        code, said = apt(module, "install", "--no-install-recommends", *missing)
        if code != 0 and update_code != 0:
            said = f"{said}\n(the package lists could not be fetched either: {update_said})"
    if code != 0:
        module.fail_json(
            msg=(
                f"apt-get could not install {', '.join(missing)} (exit code {code}). "
                "Check the node's package sources, its name resolution and the free space in /var. "
                f"It said last: {said}"
            ),
            **result,
        )
    after = installed(module)
    for name in sorted(after - present):
        files.keep("packages", name, None)
    still = [name for name in missing if name not in after]
    result["installed"] = sorted(after)
    if still:
        module.fail_json(
            msg=f"apt-get reported success, but these packages are not installed: {', '.join(still)}",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
