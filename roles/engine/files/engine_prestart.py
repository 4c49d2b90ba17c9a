# SPDX-License-Identifier: Apache-2.0
"""What must be fresh at every start of an engine unit, on this node, before its container runs.

Reads the node's launch description (JSON, written by the engine role), removes a stale container by its exact name,
resolves the fabric's interface and HCAs, frees the page cache, and refuses the start, in one sentence, when this node
cannot carry the engine.  Then it becomes the command behind the word `exec`, which runs the container.

A refused start costs nothing and is tried again for ever, so that a cable which is plugged in tomorrow heals the
engine.  A container that was started counts: too many of them in too short a time, and the unit gives up.

Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REFUSED = 78
GAVE_UP = 75
"""Exit statuses: tried again later; not tried again (the unit's RestartPreventExitStatus)."""
RAY_PROCESSES = ("gcs_server", "raylet")


class GaveUpError(Exception):
    """The engine was started too often; the message says how often and what was the matter."""


class RefusedError(Exception):
    """This node cannot carry the engine; the message says why and what to do."""


def interface_of(address: str, listing: Iterable[dict[str, Any]]) -> str:
    """Return the interface that holds an address, from ``ip -json address``.

    :raises RefusedError: when none does, naming those that are there.
    """
    seen = []
    for link in listing:
        for entry in link.get("addr_info", []):
            if entry.get("local") == address:
                if link.get("operstate") == "DOWN" or "NO-CARRIER" in link.get("flags", []):
                    raise RefusedError(
                        f"{link['ifname']} holds the fabric address {address} but has no carrier; check the cable"
                    )
                return str(link["ifname"])
            seen.append(f"{link.get('ifname')} {entry.get('local')}")
    raise RefusedError(
        f"no interface holds the fabric address {address}; there are {', '.join(seen)}. Run playbooks/fabric.yml"
    )


def active_hcas(root: Path = Path("/sys/class/infiniband")) -> list[str]:
    """Return the HCAs with an active port, sorted, as sysfs shows them now."""
    found = []
    for device in sorted(root.iterdir()) if root.is_dir() else []:
        for state in device.glob("ports/*/state"):
            if "ACTIVE" in state.read_text(encoding="ascii", errors="replace"):
                found.append(device.name)
                break
    return found


def network_environment(address: str, interface: str, hcas: list[str]) -> dict[str, str]:
    """Return the variables that name this node's network to vLLM, NCCL, Gloo and UCX.

    NCCL_IB_GID_INDEX is left unset: an index drifts in time and differs between nodes [P].
    """
    env = {
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
    }
    if hcas:
        env["NCCL_IB_HCA"] = ",".join(hcas)
        env["UCX_NET_DEVICES"] = ",".join([*(f"{hca}:1" for hca in hcas), interface])
    return env


def listeners(text: str) -> dict[int, str]:
    """Return port → process from the output of ``ss -Hltnp``."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        port = fields[3].rsplit(":", 1)[-1]
        holder = re.search(r'users:\(\("([^"]+)",pid=(\d+)', line)
        if port.isdigit():
            found[int(port)] = f"{holder.group(1)} (pid {holder.group(2)})" if holder else "a process"
    return found


def container_of(cgroup: str, listing: str) -> str:
    """Return the name of the container that a process runs in, or "".

    :param cgroup: its /proc/<pid>/cgroup.
    :param listing: ``docker ps --no-trunc --format '{{.ID}} {{.Names}}'``.
    """
    for line in listing.splitlines():
        identity, _space, name = line.partition(" ")
        if identity and identity in cgroup:
            return name
    return ""


def place_of(pid: int) -> str:
    """Return " in the container <name>" for a process that runs in one, else ""."""
    try:
        cgroup = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii")
    except OSError:
        return ""
    name = container_of(cgroup, run("docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}").stdout)
    return f" in the container {name}" if name else ""


def processes_named(names: Iterable[str], root: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Return (pid, name) of the processes whose name is exactly one of these, in the order of their pids."""
    found = []
    for entry in root.iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue
            if name in names:
                found.append((int(entry.name), name))
    return sorted(found)


def recent_starts(text: str, now_s: float, interval_s: float) -> list[float]:
    """Return the starts within the interval from a record of them; a damaged record holds none."""
    try:
        return [float(start) for start in json.loads(text) if now_s - interval_s < float(start) <= now_s]
    except (ValueError, TypeError):
        return []


def count_start(launch: dict[str, Any], restarts: int, now_s: float) -> None:
    """Count this start of a container; the first after a boot or by hand begins to count anew.

    :param restarts: how often systemd has restarted the unit by itself.
    :raises GaveUpError: when there were too many already.
    """
    record = Path(launch["starts"])
    text = record.read_text(encoding="ascii") if restarts and record.is_file() else ""
    starts = recent_starts(text, now_s, launch["restart_interval_seconds"])
    if len(starts) >= launch["restart_burst"]:
        raise GaveUpError(
            f"{len(starts)} starts in {(now_s - starts[0]) / 60:.0f} min, and at most {launch['restart_burst']} in "
            f"{launch['restart_interval_seconds'] / 60:.0f} min are allowed; see {launch['last_failure']}, cure the "
            "cause, then run playbooks/serve.yml"
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".starts.tmp")
    temporary.write_text(json.dumps([*starts, now_s]), encoding="ascii")
    temporary.replace(record)


def meminfo_gib(text: str, key: str) -> float:
    """Return one entry of /proc/meminfo in GiB."""
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) / 2**20 if match else 0.0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said; one that hangs or is not there has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def prepare(launch: dict[str, Any]) -> dict[str, str]:
    """Make this node ready and return the environment of its network.

    :raises RefusedError: when the start must not happen.
    """
    name = launch["container"]
    docker = run("docker", "version", "--format", "{{.Server.Version}}")
    if docker.returncode:
        raise RefusedError(f"the Docker Engine does not answer: {docker.stderr.strip()}; see systemctl status docker")
    if run("docker", "container", "inspect", name).returncode == 0:
        run("docker", "rm", "--force", name)
    if run("docker", "image", "inspect", launch["image"]).returncode:
        raise RefusedError(f"image {launch['image']} is not on this node; run playbooks/image.yml")
    stamp = Path(launch["weights"]) / ".gb10-manifest.json"
    if not stamp.is_file():
        raise RefusedError(
            f"the weights in {launch['weights']} are not whole ({stamp.name} is missing); run playbooks/weights.yml"
        )
    taken = listeners(run("ss", "-Hltnp").stdout)
    for port in launch["ports"]:
        if port in taken:
            holder = re.search(r"pid (\d+)", taken[port])
            place = place_of(int(holder.group(1))) if holder else ""
            raise RefusedError(f"port {port} is held by {taken[port]}{place}; stop it, or change model_spec.ports")
    if launch["engine"] == "ray" and launch["nodes"] > 1:
        for pid, process in processes_named(RAY_PROCESSES):
            raise RefusedError(
                f"another Ray runs on this node: {process} (pid {pid}){place_of(pid)}; stop it, "
                "or its nodes and this engine's get mixed up"
            )
    interface = interface_of(launch["address"], json.loads(run("ip", "-json", "address").stdout or "[]"))
    hcas = active_hcas()
    if launch["require_rdma"] and not hcas:
        raise RefusedError(
            "no HCA is active in /sys/class/infiniband; without RDMA NCCL falls back to TCP. Run playbooks/doctor.yml"
        )
    if launch["drop_caches"]:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    available = meminfo_gib(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable")
    needed = max(launch["memory_needed_gib"], launch["memory_floor_gib"])
    if available < needed:
        raise RefusedError(
            f"MemAvailable is {available:.1f} GiB and the engine needs {needed:.1f} GiB on this node: "
            f"{needed - available:.1f} GiB short. What holds memory: ps -eo rss,comm --sort=-rss | head"
        )
    return network_environment(launch["address"], interface, hcas)


def restarts_of(unit: str) -> int:
    """Return how often systemd has restarted a unit by itself since it was last started otherwise."""
    count = run("systemctl", "show", unit, "--property=NRestarts", "--value").stdout.strip()
    return int(count) if count.isdigit() else 0


def write_environment(target: Path, env: dict[str, str]) -> None:
    """Write an environment file as a whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text("".join(f"{key}={value}\n" for key, value in sorted(env.items())), encoding="utf-8")
    temporary.replace(target)


def main() -> None:
    """Prepare the start that the given launch description asks for, then become the command behind `exec`."""
    launch = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    command = sys.argv[3:] if sys.argv[2:3] == ["exec"] else []
    try:
        env = prepare(launch)
        write_environment(Path(launch["network_env"]), env)
        if command:
            count_start(launch, restarts_of(launch["unit"]), time.clock_gettime(time.CLOCK_BOOTTIME))
    except RefusedError as refusal:
        print(f"gb10: start refused: {refusal}", flush=True)
        sys.exit(REFUSED)
    except GaveUpError as end:
        print(f"gb10: gave up: {end}", flush=True)
        sys.exit(GAVE_UP)
    except OSError as error:
        print(f"gb10: start refused: {error}; is a disk full? See df -h", flush=True)
        sys.exit(REFUSED)
    print(f"gb10: {launch['container']} starts as rank {launch['rank']} on {env['GLOO_SOCKET_IFNAME']}", flush=True)
    if command:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
