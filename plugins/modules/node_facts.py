#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_facts
short_description: Read the state of an inference node in one step
version_added: 0.1.0
description:
  - Reads operating system, memory, disk, services, Docker, GPU and engine units of a node.
  - Needs nothing on the node but Python and systemd; what is absent is reported as absent.
  - Changes nothing.
options:
  units:
    description: Patterns of the systemd units that serve.
    type: list
    elements: str
    default: ["vllm-*.service"]
  detail:
    description: >-
      Also read what only a diagnosis needs: firmware, what protects the node's memory, listening sockets, and the
      identity of every tagged image.
    type: bool
    default: false
  gpu_load_image:
    description: >-
      An image with torch in which an idle GPU computes for a few seconds while its clock is read, with O(detail). Not
      while one of O(units) is active.
    type: str
    default: ""
  gpu_load_args:
    description: Arguments of docker run that give a container the GPU.
    type: list
    elements: str
    default: [--runtime, nvidia]
  disk_paths:
    description: >-
      Paths whose file systems are measured; a path that does not exist yet counts as its nearest existing parent.
      Docker's data directory, wherever it is, is always among them.
    type: list
    elements: path
    default: [/]
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
"""

EXAMPLES = r"""
- name: Read the node
  gb10.cluster.node_facts:
    disk_paths: [/, /srv/models]
  register: node
"""

RETURN = r"""
node:
  description: What was found.
  returned: success
  type: dict
  contains:
    os:
      description: C(id), C(version_id), C(name), C(dgx) (version of DGX OS or empty), C(kernel), C(arch), C(python).
      type: dict
    hostname:
      description: Name the kernel has.
      type: str
    container:
      description: Kind of container that the node is (V(docker), V(lxc), ...); empty on a machine of its own.
      type: str
    memory_gib:
      description: C(total), C(available), C(swap_total), C(swap_free), C(cma_total), C(cma_free).
      type: dict
    kho_fault:
      description: Whether the kernel shows the kexec-handover fault (more CMA memory free than there is).
      type: bool
    disks:
      description: By path, C(free_gib), C(size_gib), C(mount).
      type: dict
    gpu:
      description: >-
        C(present), C(driver), C(container_toolkit) (whether nvidia-ctk or nvidia-container-runtime is there),
        C(clock_cap_mhz) that role host has set, or 0.
      type: dict
    docker:
      description: >-
        C(installed), C(active), C(path), C(data_root), C(runtimes) that daemon.json names, C(cdi) (whether a
        description of the GPU for containers is there).
      type: dict
    systemd:
      description: C(default_target), C(state), C(failed) units.
      type: dict
    desktop:
      description: C(unit) of the active display manager or empty, C(rss_gib) that the graphical session holds.
      type: dict
    time:
      description: C(service) that synchronises the clock or empty, C(synchronized), C(epoch_s) now.
      type: dict
    bios:
      description: Version and date of the system's firmware.
      type: str
      returned: when O(detail=true)
    protection:
      description: C(earlyoom) and C(systemd_oomd) (active), C(sshd_oom_score_adjust), C(swappiness), C(dirty_bytes).
      type: dict
      returned: when O(detail=true)
    listeners:
      description: >-
        TCP sockets that other machines can reach, each with C(address), C(port), C(process), C(container) (name of the
        container that listens, or empty).
      type: list
      elements: dict
      returned: when O(detail=true)
    images:
      description: By tag, the identity of each image, the same on every storage driver.
      type: dict
      returned: when O(detail=true)
    docker_version:
      description: Version of the running Docker Engine.
      type: str
      returned: when O(detail=true)
    docker_runtimes:
      description: Names of the runtimes that the running Docker Engine has, whatever daemon.json says.
      type: list
      elements: str
      returned: when O(detail=true)
    gpu_library:
      description: Version of the installed driver libraries, empty where there are none.
      type: str
      returned: when O(detail=true)
    gpu_sample:
      description: >-
        The busiest of four looks within 1.5 s: C(sm_mhz), C(sm_max_mhz), C(busy_percent), C(power_w), C(power_limit_w),
        C(brakes); empty without nvidia-smi.
      type: dict
      returned: when O(detail=true)
    gpu_error:
      description: What nvidia-smi printed instead of an answer.
      type: str
      returned: when O(detail=true)
    gpu_load_error:
      description: Why the GPU did not compute in O(gpu_load_image); empty when it did, or was not to.
      type: str
      returned: when O(detail=true)
    kernel_next:
      description: C(version) of the kernel that the next boot takes, C(nvidia) (whether it has the GPU driver).
      type: dict
      returned: when O(detail=true)
    updates_held:
      description: Patterns of packages that role host keeps unattended upgrades from.
      type: list
      elements: str
      returned: when O(detail=true)
    reboot_required:
      description: Packages that wait for a reboot.
      type: list
      elements: str
      returned: when O(detail=true)
    engines_enabled:
      description: Units among O(units) that start at boot.
      type: list
      elements: str
      returned: when O(detail=true)
    engine_containers:
      description: >-
        By name of an engine's running container, what its first process may do: C(capabilities), C(no_new_privileges),
        C(memlock_bytes) (V(-1) for unlimited), C(rdma_devices).
      type: dict
      returned: when O(detail=true)
    swap:
      description: A swap of the served model that is not decided on all nodes, as M(gb10.cluster.node_status) has it.
      type: dict
      returned: when O(detail=true)
    swap_rolled_back:
      description: When, why, and from which model to which a swap was rolled back by the nodes.
      type: dict
      returned: when O(detail=true)
    front:
      description: >-
        On the head, what a client without a key meets at the C(port) where clients reach the API; whether that is a
        proxy (C(proxied)), C(status) and C(error) of a request for the models, whether they are listed without a key
        (C(open)), and the status of the engine's own /health (C(engine)). Empty elsewhere.
      type: dict
      returned: when O(detail=true)
    engines:
      description: Active units among O(units).
      type: list
      elements: str
"""

import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._engine.record import ACTIVE
from ansible_collections.gb10.cluster.plugins.module_utils._engine.swap import STATE_DIR, summary
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.module_utils._node.capabilities import of_process
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import (
    KIB_PER_GIB,
    blacklist,
    kho_fault,
    parse_meminfo,
    parse_os_release,
    parse_systemctl_show,
    unit_names,
)
from ansible_collections.gb10.cluster.plugins.module_utils._node.files import existing, read_json
from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu import library_version
from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu_load import load_command, loaded, sample_gpu
from ansible_collections.gb10.cluster.plugins.module_utils._node.listeners import listeners
from ansible_collections.gb10.cluster.plugins.module_utils._node.listeners import read_text as read
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import probe_front

#: Looks at the GPU within 1.5 s: a pause between two requests must not pass for an idle GPU.
SMI_INTERVAL_S = 0.5
#: A command that has not ended after so long hangs; one of a busy node takes half a minute.
HUNG_S = 90
TIME_SERVICES = ("chrony.service", "systemd-timesyncd.service", "ntpsec.service", "ntp.service", "openntpd.service")
DISPLAY_PROCESSES = ("gnome-shell", "Xorg", "Xwayland", "gdm", "lightdm", "sddm", "plasmashell", "gnome-session-b")


def run(*argv: str) -> str:
    """Return what a command prints; an empty string when it is absent, fails to start or hangs."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=HUNG_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def container_kind() -> str:
    """Return the kind of container that this node is, or an empty string."""
    kind = read("/run/systemd/container").strip()
    if kind:
        return kind
    for variable in read("/proc/1/environ").split("\0"):
        if variable.startswith("container="):
            return variable.partition("=")[2]
    return "docker" if Path("/.dockerenv").exists() else ""


def disk(path: str) -> dict[str, Any]:
    """Return free and total GiB of the file system that holds (or would hold) ``path``."""
    place = existing(Path(path))
    mount = place.resolve()
    while not os.path.ismount(mount):
        mount = mount.parent
    usage = os.statvfs(place)
    return {
        "free_gib": round(usage.f_bavail * usage.f_frsize / 2**30, 2),
        "size_gib": round(usage.f_blocks * usage.f_frsize / 2**30, 2),
        "mount": str(mount),
    }


def desktop() -> dict[str, Any]:
    """Return the active display manager and the memory that the graphical processes hold."""
    unit = ""
    resident_pages = 0
    state = parse_systemctl_show(run("systemctl", "show", "--property=Id,ActiveState", "display-manager.service"))
    if state.get("ActiveState") == "active":
        unit = state.get("Id", "display-manager.service")
    for stat in Path("/proc").glob("[0-9]*/statm"):
        try:
            name = (stat.parent / "comm").read_text(encoding="utf-8").strip()
            if name in DISPLAY_PROCESSES:
                words = stat.read_text(encoding="utf-8").split()
                resident_pages += int(words[1]) - int(words[2])
        except (OSError, ValueError):
            continue
    return {"unit": unit, "rss_gib": round(resident_pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 2)}


def active(pattern: str) -> list[str]:
    return unit_names(run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", pattern))


def clock() -> dict[str, Any]:
    """Return which service synchronises the clock, whether it is synchronised, and the time now."""
    found = [unit for unit in TIME_SERVICES if active(unit)]
    synchronised = run("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() == "yes"
    return {"service": found[0] if found else "", "synchronized": synchronised, "epoch_s": time.time()}


def docker() -> dict[str, Any]:
    """Return whether Docker Engine is installed and runs, its data directory and its runtimes."""
    dockerd = shutil.which("dockerd", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    try:
        config = json.loads(read("/etc/docker/daemon.json") or "{}")
    except ValueError:
        config = {}
    if not isinstance(config, dict):
        config = {}
    return {
        "installed": dockerd is not None,
        "active": bool(active("docker.service")),
        "path": dockerd or "",
        "data_root": str(config.get("data-root", "/var/lib/docker")),
        "runtimes": sorted(config.get("runtimes", {})),
        "cdi": any(path for place in ("/etc/cdi", "/var/run/cdi") for path in Path(place).glob("*nvidia*")),
    }


def clock_cap_mhz() -> int:
    """Return the highest clock that role host has set for the GPU, in MHz; 0 without one."""
    found = re.search(r"--lock-gpu-clocks=0,(\d+)", read("/etc/systemd/system/gb10-clock-cap.service"))
    return int(found[1]) if found and active("gb10-clock-cap.service") else 0


def container_names() -> dict[str, str]:
    rows = (line.split() for line in run("docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}").splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def engine_containers(patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the first process of each running engine's container may do, from /proc."""
    found = {}
    for name in (unit.removesuffix(".service") for pattern in patterns for unit in active(pattern)):
        pid = run("docker", "container", "inspect", "--format", "{{.State.Pid}}", name).strip()
        if pid.isdigit() and pid != "0":
            devices = [path.name for path in Path(f"/proc/{pid}/root/dev/infiniband").glob("*")]
            found[name] = of_process(read(f"/proc/{pid}/status"), read(f"/proc/{pid}/limits"), devices)
    return found


def images() -> dict[str, str]:
    tags = run("docker", "image", "ls", "--filter", "dangling=false", "--format", "{{.Repository}}:{{.Tag}}").split()
    if not tags:
        return {}
    try:
        inspected = json.loads(run("docker", "image", "inspect", *tags))
    except ValueError:
        return {}
    # By the names that each has: one that was removed since the list was read is left out.
    return {tag: identity(each) for each in inspected for tag in each.get("RepoTags") or () if tag in tags}


def kernel_next() -> dict[str, Any]:
    """Return which kernel the next boot takes, and whether the GPU driver is built for it."""
    version = Path("/boot/vmlinuz").resolve().name.partition("-")[2]
    modules = Path("/lib/modules") / version
    return {"version": version, "nvidia": bool(version) and any(modules.rglob("nvidia.ko*"))}


def front(active: Path) -> dict[str, Any]:
    """Return what clients meet where they reach the API of the engine that serves, on its head; empty elsewhere."""
    record = read_json(active)
    launch = read_json(active.with_name(f"{record['model']}.json")) if record.get("model") else {}
    if launch.get("rank") != 0:
        return {}
    return probe_front(int(record.get("api_port", 8000)), int(record.get("proxy_port") or 0))


def detail(units: list[str], load_image: str, load_args: list[str]) -> dict[str, Any]:
    """Return what only a diagnosis needs."""
    idle = load_image and not any(active(pattern) for pattern in units)
    with loaded(load_command(load_image, load_args) if idle else []) as no_load:
        sample, error = sample_gpu(run, SMI_INTERVAL_S)
    try:
        engine = json.loads(run("docker", "info", "--format", "{{json .}}") or "{}")
    except ValueError:
        engine = {}
    enabled = run("systemctl", "list-unit-files", "--plain", "--no-legend", "--state=enabled", *units)
    libraries = (path.name for path in Path("/usr/lib").glob("*-linux-gnu/libnvidia-ml.so.*"))
    reboot = read("/run/reboot-required.pkgs").split()
    ssh = parse_systemctl_show(run("systemctl", "show", "--property=OOMScoreAdjust", "ssh.service"))
    return {
        "bios": " ".join(filter(None, (read(f"/sys/class/dmi/id/bios_{key}").strip() for key in ("version", "date")))),
        "protection": {
            "earlyoom": bool(active("earlyoom.service")),
            "systemd_oomd": bool(active("systemd-oomd.service")),
            "sshd_oom_score_adjust": int(ssh.get("OOMScoreAdjust") or 0),
            "swappiness": int(read("/proc/sys/vm/swappiness") or -1),
            "dirty_bytes": int(read("/proc/sys/vm/dirty_bytes") or 0),
        },
        "listeners": listeners(container_names(), read),
        "images": images(),
        "docker_version": str(engine.get("ServerVersion") or ""),
        "docker_runtimes": sorted(engine.get("Runtimes") or {}),
        "gpu_library": library_version(libraries),
        "gpu_sample": sample,
        "gpu_error": error,
        "gpu_load_error": no_load,
        "kernel_next": kernel_next(),
        "updates_held": blacklist(read("/etc/apt/apt.conf.d/52gb10-unattended-upgrades")),
        "reboot_required": sorted(set(reboot)) or (["not named"] if Path("/run/reboot-required").exists() else []),
        "engines_enabled": unit_names(enabled),
        "engine_containers": engine_containers(units),
        "swap": summary(read_json(STATE_DIR / "swap.json")),
        "swap_rolled_back": read_json(STATE_DIR / "swap_rolled_back.json"),
        "front": front(ACTIVE),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "disk_paths": {"type": "list", "elements": "path", "default": ["/"]},
            "units": {"type": "list", "elements": "str", "default": ["vllm-*.service"]},
            "detail": {"type": "bool", "default": False},
            "gpu_load_image": {"type": "str", "default": ""},
            "gpu_load_args": {"type": "list", "elements": "str", "default": ["--runtime", "nvidia"]},
        },
        supports_check_mode=True,
    )
    release = parse_os_release(read("/etc/os-release"))
    dgx = parse_os_release(read("/etc/dgx-release"))
    meminfo = parse_meminfo(read("/proc/meminfo"))
    driver = read("/sys/module/nvidia/version").strip()
    engine = docker()
    module.exit_json(
        changed=False,
        node={
            "os": {
                "id": release.get("ID", "unknown"),
                "version_id": release.get("VERSION_ID", ""),
                "name": release.get("PRETTY_NAME", ""),
                "dgx": dgx.get("DGX_OTA_VERSION", dgx.get("DGX_SWBUILD_VERSION", "")),
                "kernel": platform.release(),
                "arch": platform.machine(),
                "python": platform.python_version(),
            },
            "hostname": platform.node(),
            "container": container_kind(),
            "memory_gib": {
                key: round(meminfo.get(name, 0) / KIB_PER_GIB, 2)
                for key, name in {
                    "total": "MemTotal",
                    "available": "MemAvailable",
                    "swap_total": "SwapTotal",
                    "swap_free": "SwapFree",
                    "cma_total": "CmaTotal",
                    "cma_free": "CmaFree",
                }.items()
            },
            "kho_fault": kho_fault(meminfo),
            "disks": {path: disk(path) for path in {*module.params["disk_paths"], engine["data_root"]}},
            "gpu": {
                "present": bool(driver) or Path("/dev/nvidia0").exists(),
                "driver": driver,
                "container_toolkit": bool(shutil.which("nvidia-ctk") or shutil.which("nvidia-container-runtime")),
                "clock_cap_mhz": clock_cap_mhz(),
            },
            "docker": engine,
            "systemd": {
                "default_target": run("systemctl", "get-default").strip(),
                "state": run("systemctl", "is-system-running").strip(),
                "failed": unit_names(run("systemctl", "list-units", "--plain", "--no-legend", "--state=failed")),
            },
            "desktop": desktop(),
            "time": clock(),
            **(
                detail(*(module.params[key] for key in ("units", "gpu_load_image", "gpu_load_args")))
                if module.params["detail"]
                else {}
            ),
            "engines": [unit for pattern in module.params["units"] for unit in active(pattern)],
        },
    )


if __name__ == "__main__":
    main()
