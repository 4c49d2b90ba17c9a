# SPDX-License-Identifier: Apache-2.0
"""Prepare a start of an engine's unit on this node, then become the command that runs its container.

Reads the node's launch description (JSON, written by the role engine), removes a stale container by its exact name,
resolves the fabric's interface and HCAs, and refuses the start, in one sentence, when this node
cannot run the engine.

A refused start costs nothing and is tried again indefinitely, so that a cable which is plugged in tomorrow brings the
engine back.  A container that was started counts: too many of them in too short a time, and the unit gives up.

Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine import page_cache, started
from ansible_collections.gb10.cluster.plugins.module_utils._engine.life import GAVE_UP, REFUSED
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.capture import sysfs
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.environment import (
    RECORD_PATH,
    FabricError,
    check_engine,
    hcas,
    left_out,
    network_environment,
    parse_record,
)
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import available_gib

#: A `docker rm` of a container with much memory takes its time.
COMMAND_SECONDS = 120.0
#: In the directory of progress: there once the engine serves.
SERVING = "serving"
UNITS = Path("/etc/systemd/system")
#: Device nodes of NVIDIA's driver that a container uses.
GPU_DEVICE = re.compile(r"nvidia(?:\d+|ctl|-uvm|-uvm-tools|-modeset)")
RAY_PROCESSES = ("gcs_server", "raylet")


class GaveUpError(Exception):
    """The engine was started too often; the message says how often and where the reason is."""


class RefusedError(Exception):
    """This node cannot run the engine; the message says why and what to do."""


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


def fabric_of(address: str, interface: str, launch: dict[str, Any], listing: str) -> dict[str, str]:
    """Return the variables that name this node's network, resolved now.

    :param interface: the device that has the address.
    :param launch: the launch description; its `nccl_env` is what the model sets of NCCL's.
    :param listing: output of ``ip -json address``.
    :raises RefusedError: when RDMA is required and no HCA can be used, or the engine cannot work on this fabric.
    """
    record = parse_record(files.read_json(RECORD_PATH))
    tree = {**sysfs(), "ip": listing}
    machine = parse_capture(tree)
    if not {netdev.name for netdev in machine.netdevs} >= set(record.netdevs):
        machine = parse_capture(tree, interfaces=record.netdevs)
    try:
        check_engine(record, launch["engine"], launch["nodes"], launch.get("nccl_env", {}))
    except FabricError as error:
        raise RefusedError(str(error)) from error
    unused = left_out(machine, record)
    if launch["require_rdma"] and not hcas(machine, record):
        raise RefusedError(
            f"no HCA can be used: {'; '.join(unused) or 'none of a linked port is active in /sys/class/infiniband'}. "
            "Without RDMA NCCL falls back to TCP. Run playbooks/doctor.yml"
        )
    for phrase in unused:
        print(f"gb10: warning: not used by NCCL: {phrase}", flush=True)
    return network_environment(machine, record, address, interface)


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
    name = container_of(cgroup, call("docker", "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}")[1])
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

    :param restarts: how often systemd has restarted the unit automatically.
    :raises GaveUpError: when there were too many already.
    """
    record = Path(launch["starts"])
    text = record.read_text(encoding="ascii") if restarts and record.is_file() else ""
    starts = recent_starts(text, now_s, launch["restart_interval_seconds"])
    if len(starts) >= launch["restart_burst"]:
        raise GaveUpError(
            f"{len(starts)} starts in {(now_s - starts[0]) / 60:.0f} min, and at most {launch['restart_burst']} in "
            f"{launch['restart_interval_seconds'] / 60:.0f} min are allowed; see {launch['last_failure']}, fix the "
            "cause, then run playbooks/serve.yml"
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    files.write(record, json.dumps([*starts, now_s]))


def call(*command: str) -> tuple[int, str, str]:
    """Run a command; returns exit status, output and errors."""
    return run(command, COMMAND_SECONDS)


def prepare(launch: dict[str, Any]) -> dict[str, str]:
    """Make this node ready and return the environment of its network.

    :raises RefusedError: when the start must not happen.
    """
    name = launch["container"]
    status, _out, problem = call("docker", "version", "--format", "{{.Server.Version}}")
    if status:
        raise RefusedError(f"the Docker Engine does not answer: {problem.strip()}; see systemctl status docker")
    if call("docker", "container", "inspect", name)[0] == 0:
        call("docker", "rm", "--force", name)
    if call("docker", "image", "inspect", launch["image"])[0]:
        raise RefusedError(f"image {launch['image']} is not on this node; run playbooks/image.yml")
    for folder in (launch["weights"], *launch.get("beside", [])):
        stamp = Path(folder) / ".gb10-manifest.json"
        if not stamp.is_file():
            raise RefusedError(
                f"the weights in {folder} are not complete ({stamp.name} is missing); run playbooks/weights.yml"
            )
    if launch["tether_key"] and not Path(launch["tether_key"]).is_file():
        raise RefusedError(f"the tether key {launch['tether_key']} is missing; run playbooks/serve.yml")
    taken = listeners(call("ss", "-Hltnp")[1])
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
    listing = call("ip", "-json", "address")[1] or "[]"
    interface = interface_of(launch["address"], json.loads(listing))
    env = fabric_of(launch["address"], interface, launch, listing)
    available = available_gib(Path("/proc/meminfo").read_text(encoding="ascii"))
    needed = max(launch["memory_needed_gib"], launch["memory_floor_gib"])
    if available < needed:
        raise RefusedError(
            f"MemAvailable is {available:.1f} GiB and the engine needs {needed:.1f} GiB on this node: "
            f"{needed - available:.1f} GiB short. What holds memory: ps -eo rss,comm --sort=-rss | head"
        )
    return env


def make_directories(launch: dict[str, Any]) -> Path:
    """Create what the container mounts, for root alone; return the file that shows that the engine serves.

    The cache holds code that the engine runs, so nobody else may write there; the directory of progress is empty at
    every start.
    """
    cache, progress = Path(launch["cache"]), Path(launch["progress"])
    cache.parents[2].mkdir(parents=True, exist_ok=True)
    progress.parent.mkdir(parents=True, exist_ok=True)
    for path in (cache.parents[1], cache.parent, cache, progress):
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)  # Docker creates what it mounts for everybody to read
    serving = progress / SERVING
    files.remove(serving)
    return serving


def gpu_devices(directory: Path = Path("/dev")) -> list[str]:
    """Return the device nodes of NVIDIA's driver, sorted; empty where there is none."""
    return sorted(
        str(path) for path in directory.glob("nvidia*") if GPU_DEVICE.fullmatch(path.name) and path.is_char_device()
    )


def with_devices(command: Sequence[str], devices: Sequence[str]) -> list[str]:
    """Return a ``docker run`` command that names devices which it does not name yet.

    Docker then tells systemd of them.  What only the container runtime adds, systemd does not know, and takes away from
    the running container at its next ``daemon-reload`` (NVIDIA/nvidia-docker#1730 names this remedy).
    """
    missing = [f"--device={device}" for device in devices if f"--device={device}" not in command]
    at = command.index("run") + 1
    return [*command[:at], *missing, *command[at:]]


def restarts_of(unit: str) -> int:
    """Return how often systemd has restarted a unit automatically since it was last started otherwise."""
    count = call("systemctl", "show", unit, "--property=NRestarts", "--value")[1].strip()
    return int(count) if count.isdigit() else 0


def count_fault(launch: dict[str, Any]) -> int:
    """Count a start that failed on a wrong description, which no time heals; return the exit status."""
    try:
        count_start(launch, restarts_of(launch["unit"]), time.clock_gettime(time.CLOCK_BOOTTIME))
    except GaveUpError as end:
        print(f"gb10: gave up: {end}", flush=True)
        return GAVE_UP
    except Exception:  # noqa: BLE001 - without a description there is nothing to count with
        return REFUSED
    return REFUSED


def main(argv: Sequence[str]) -> int:
    """Prepare the start that the launch description asks for, then become the command.

    :returns: `REFUSED` or `GAVE_UP`; 0 when there is no command.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path, help="launch description of this rank, JSON")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="exec COMMAND", help="what to become")
    given = parser.parse_args(argv)
    command = given.command[1:]
    launch: dict[str, Any] = {}
    try:
        launch = json.loads(given.launch.read_text(encoding="utf-8"))
        env = prepare(launch)
        network_env = Path(launch["network_env"])
        network_env.parent.mkdir(parents=True, exist_ok=True)
        files.write(network_env, "".join(f"{key}={value}\n" for key, value in sorted(env.items())))
        serving = make_directories(launch)
        if command:
            started.note(network_env.with_suffix(".started"), UNITS / launch["unit"], given.launch.parent)
            count_start(launch, restarts_of(launch["unit"]), time.clock_gettime(time.CLOCK_BOOTTIME))
    except RefusedError as refusal:
        print(f"gb10: start refused: {refusal}", flush=True)
        return REFUSED
    except GaveUpError as end:
        print(f"gb10: gave up: {end}", flush=True)
        return GAVE_UP
    except OSError as error:
        print(f"gb10: start refused: {error}; is a disk full? See df -h", flush=True)
        return REFUSED
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the description, it is named and counted
        print(
            f"gb10: start refused: {type(error).__name__}: {error}, in {given.launch}; run playbooks/serve.yml",
            flush=True,
        )
        return count_fault(launch)
    print(f"gb10: {launch['container']} starts as rank {launch['rank']} on {env['GLOO_SOCKET_IFNAME']}", flush=True)
    if command:
        pid, seconds = os.getpid(), launch["drop_caches_seconds"]
        if seconds > 0:
            page_cache.in_background(lambda: page_cache.drop_until_serving(serving, pid, seconds))
        os.execvp(command[0], with_devices(command, gpu_devices()) if launch["gpu_devices"] else command)
    return 0
