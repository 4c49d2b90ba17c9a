#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon
short_description: Merge settings into Docker's daemon.json and make them effective with the least harm
version_added: 0.1.0
description:
  - Merges O(config) into the file that is there, so that the owner's entries (the NVIDIA runtime, a
    data-root, mirrors) stay. Dictionaries are merged, missing entries of lists are added, V(null) removes a key.
  - Validates the result with C(dockerd --validate) where this dockerd has that option.
  - When only keys changed that a running daemon takes over on SIGHUP, it is reloaded. Other keys need
    a restart, which ends every container. While a unit matching O(protect_units) is active, or a container of the owner
    runs and C(live-restore) is off, the restart is deferred, reported, and done by the first run that finds none.
options:
  config:
    description: Settings under the names that daemon.json uses.
    type: dict
    required: true
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  protect_units:
    description: systemd unit patterns whose activity forbids a restart of Docker.
    type: list
    elements: str
    default: ["vllm-*.service"]
  restart:
    description: >-
      V(auto) defers a restart while a protected unit is active or a container of the owner runs, V(always) restarts
      regardless, V(never) leaves every restart to the owner.
    type: str
    choices: [auto, always, never]
    default: auto
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Bound the logs of all containers
  gb10.cluster.docker_daemon:
    config:
      log-driver: json-file
      log-opts:
        max-size: 50m
        max-file: "3"
"""

RETURN = r"""
action:
  description: What made the file effective; V(deferred) means that a restart is pending.
  returned: success
  type: str
  choices: [none, reload, restart, deferred]
changed_keys:
  description: Top-level keys that differed.
  returned: success
  type: list
  elements: str
  sample: [insecure-registries]
restart_keys:
  description: Those of them that need a restart.
  returned: success
  type: list
  elements: str
  sample: [log-driver]
protected:
  description: Active units that forbade a restart.
  returned: success
  type: list
  elements: str
"""

import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.docker_config import changed_keys, needs_restart
from ansible_collections.gb10.cluster.plugins.module_utils._node.json_merge import JsonMergeError, merge, parse, render
from ansible_collections.gb10.cluster.plugins.module_utils._node.owner import is_ours

#: Holds the id of the dockerd that owes the restart; a boot, or a restart by hand, settles the debt.
OWED = Path("/run/gb10/docker-restart-owed")


def active_units(module: AnsibleModule, patterns: list[str]) -> list[str]:
    """Return the active or starting units among ``patterns``."""
    _code, out, _err = module.run_command(
        ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,reloading", *patterns]
    )
    return [line.split()[0] for line in out.splitlines() if line.strip()]


def owner_containers(module: AnsibleModule, config: Mapping[str, Any]) -> list[str]:
    """Return the running containers of the owner that a restart of Docker would end; none with live-restore."""
    docker = module.get_bin_path("docker")
    if docker is None or config.get("live-restore") is True:
        return []
    _code, out, _err = module.run_command([docker, "container", "ls", "--format", "{{.Names}}"])
    return sorted(f"container {name}" for name in out.split() if not is_ours(name))


def daemon_pid(module: AnsibleModule) -> str:
    """Return dockerd's process id, or an empty string when docker.service does not run."""
    _code, out, _err = module.run_command(["systemctl", "show", "--property=ActiveState,MainPID", "docker.service"])
    state = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return state.get("MainPID", "") if state.get("ActiveState") == "active" else ""


def restart_owed(pid: str) -> bool:
    """Return whether an earlier run left a restart to be done, and nobody has done it since."""
    return bool(pid) and OWED.exists() and OWED.read_text(encoding="utf-8").split()[:1] == [pid]


def validate(module: AnsibleModule, text: str) -> None:
    """Let dockerd itself judge the text, where it can; fails with its words."""
    dockerd = module.get_bin_path("dockerd")
    if dockerd is None or "--validate" not in module.run_command([dockerd, "--help"])[1]:
        return
    with tempfile.NamedTemporaryFile("w", prefix="gb10-daemon-", suffix=".json", encoding="utf-8") as copy:
        copy.write(text)
        copy.flush()
        code, out, err = module.run_command([dockerd, "--validate", "--config-file", copy.name])
    if code != 0:
        module.fail_json(msg=f"dockerd refuses the merged configuration, nothing was changed: {(err or out).strip()}")


def systemctl(module: AnsibleModule, verb: str, path: Path, previous: str | None, mode: int) -> None:
    """Reload or restart Docker; on failure put the previous file back, start it again, and fail."""
    module.run_command(["systemctl", "reset-failed", "docker.service", "docker.socket"])
    code, out, err = module.run_command(["systemctl", verb, "docker.service"])
    if code == 0:
        return
    if previous is None:
        files.remove(path)
    else:
        files.write(path, previous, mode)
    module.run_command(["systemctl", "reset-failed", "docker.service", "docker.socket"])
    back, _out, _err = module.run_command(["systemctl", "restart", "docker.service"])
    module.fail_json(
        msg=(
            f"Docker did not {verb} with the new {path}: {(err or out).strip()} "
            "The previous file is back in its place and Docker "
            + ("runs with it." if back == 0 else "does not start with it either: journalctl -u docker.")
        )
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "protect_units": {"type": "list", "elements": "str", "default": ["vllm-*.service"]},
            "restart": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    found = files.read(path)
    previous = found[0].decode() if found else None
    mode = stat.S_IMODE(found[1].st_mode) if found else 0o644
    try:
        before = parse(previous or "", str(path))
    except JsonMergeError as error:
        module.fail_json(msg=str(error))
    after = merge(before, module.params["config"])
    keys = changed_keys(before, after)
    text = render(after)

    restart_keys = needs_restart(keys)
    pid = daemon_pid(module)
    owed = restart_owed(pid)
    protected: list[str] = []
    if restart_keys or owed:
        protected = active_units(module, module.params["protect_units"]) + owner_containers(module, before)
    action = "none"
    if restart_keys or owed:
        allowed = module.params["restart"] == "always" or (module.params["restart"] == "auto" and not protected)
        action = "restart" if allowed else "deferred"
    elif keys:
        action = "reload"
    if not pid and action != "none":
        # It reads the file when it is started; nothing runs that could be harmed.
        action = "none"

    if not module.check_mode:
        if keys:
            validate(module, text)
            files.make_directories(path.parent)
            files.write(path, text, mode)
        if action in ("reload", "restart"):
            systemctl(module, action, path, previous, mode)
        if action == "deferred" and restart_keys:
            files.make_directories(OWED.parent)
            files.write(OWED, f"{pid} {' '.join(restart_keys)}\n")
        elif action == "restart":
            files.remove(OWED)
    if action == "deferred":
        module.warn(
            f"Docker must be restarted before {', '.join(restart_keys) or 'an earlier change'} in {path} takes "
            f"effect. Not done now: it would end {', '.join(protected) or 'all containers'}. "
            "The next run that finds none of them running does it, or set host_docker_restart: always."
        )
    result: dict[str, Any] = {
        "changed": bool(keys) or action in ("reload", "restart"),
        "action": action,
        "changed_keys": keys,
        "restart_keys": restart_keys,
        "protected": protected,
        "diff": files.diff(str(path), previous or "", text if keys else previous or ""),
    }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
