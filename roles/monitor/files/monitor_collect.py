# SPDX-License-Identifier: Apache-2.0
"""What a node tells Prometheus beside its node exporter: engine, watch, fabric, disks, transfers and limits.

Reads its description (JSON, written by the monitor role) again and again and writes one file in Prometheus' text form
into the node exporter's textfile directory, whole or not at all.  Changes nothing else.  Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The states that the probe and the watch know; another word is told as "unknown".
STATES = ("absent", "starting", "ready", "wrong_model", "degraded", "wedged", "dead", "unknown")
#: sysfs counts what crosses an InfiniBand or RoCE port in units of four bytes.
BYTES_PER_WORD = 4
#: What the watch has not looked at for so long is not known; a look may take minutes.
WATCH_OLD_S = 1800.0
HELP = {
    "gb10_collector_time_seconds": "When this node's figures were read.",
    "gb10_limit_memory_floor_bytes": "MemAvailable below this is too little.",
    "gb10_limit_disk_floor_bytes": "Free space below this is too little.",
    "gb10_engine_active_info": "The model that this node's engine role keeps as the active one.",
    "gb10_engine_rank_up": "Whether the unit of this node's rank is active.",
    "gb10_engine_rank_restarts": "How often systemd has restarted the rank's unit.",
    "gb10_watch_present": "Whether there is a readable state of the watch on this node.",
    "gb10_watch_state": "1 for the state that the watch reports.",
    "gb10_watch_since_seconds": "When the watch's state was entered.",
    "gb10_watch_looked_seconds": "When the watch has looked last.",
    "gb10_fabric_link_up": "Whether a port of the fabric has a link.",
    "gb10_fabric_bytes_total": "What crossed a port of the fabric, by who counts it: the network stack, or RDMA.",
    "gb10_rdma_events_total": "Errors and congestion that an RDMA port has counted.",
    "gb10_disk_free_bytes": "Free space of the file system that holds a path.",
    "gb10_disk_size_bytes": "Size of the file system that holds a path.",
    "gb10_transfer_incoming_bytes": "What has arrived of weights that are not yet in place.",
    "gb10_transfer_unit_active": "Whether a unit that moves images or weights is active.",
}
COUNTERS = ("gb10_fabric_bytes_total", "gb10_rdma_events_total")
#: Counters below .../counters and .../hw_counters that tell of trouble; the rest is traffic or zero by nature.
EVENTS = (
    "link_downed",
    "link_error_recovery",
    "symbol_error",
    "port_rcv_errors",
    "port_xmit_discards",
    "port_xmit_wait",
    "out_of_buffer",
    "out_of_sequence",
    "packet_seq_err",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "rx_icrc_encapsulated",
    "np_cnp_sent",
    "rp_cnp_handled",
    "np_ecn_marked_roce_packets",
    "roce_adp_retrans",
    "roce_slow_restart",
)


@dataclass
class Figures:
    """Samples of metrics, in the order in which they were added."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add one sample."""
        self.samples.setdefault(name, []).append((labels, float(value)))

    def text(self) -> str:
        """Return them all in Prometheus' text form."""
        lines = []
        for name, samples in self.samples.items():
            lines.append(f"# HELP {name} {HELP[name]}")
            lines.append(f"# TYPE {name} {'counter' if name in COUNTERS else 'gauge'}")
            for labels, value in samples:
                inner = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
                lines.append(f"{name}{{{inner}}} {value!r}" if inner else f"{name} {value!r}")
        return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return a label's value as the text form wants it."""
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def read(path: Path) -> str:
    """Return a file's text without the white space around it, or an empty string when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; an empty one when it is absent, unreadable or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def number(text: str) -> float | None:
    """Return a counter's value, or None when the kernel gives none (N/A, an error, nothing)."""
    try:
        return float(text)
    except ValueError:
        return None


def since_seconds(value: Any) -> float | None:
    """Return a point in time as seconds of the epoch, from such seconds or from ISO 8601; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    try:
        from datetime import datetime

        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def watch(figures: Figures, state: Mapping[str, Any], now_s: float) -> None:
    """Add what the watch keeps of the cluster's state; one that it has not looked at for long is unknown."""
    figures.add("gb10_watch_present", 1 if state.get("state") else 0)
    if not state.get("state"):
        return
    looked = since_seconds(state.get("looked"))
    old = looked is not None and now_s - looked > WATCH_OLD_S
    told = state["state"] if state["state"] in STATES and not old else "unknown"
    for each in STATES:
        figures.add("gb10_watch_state", each == told, state=each)
    since = since_seconds(state.get("since"))
    if since is not None:
        figures.add("gb10_watch_since_seconds", since)
    if looked is not None:
        figures.add("gb10_watch_looked_seconds", looked)


def engine(figures: Figures, record: Mapping[str, Any], node: str, unit: Mapping[str, str]) -> None:
    """Add the active model and the rank of this node; ``unit`` is what systemd says of the rank's unit."""
    members = [str(member) for member in record.get("members") or []]
    if node not in members:
        return
    model, rank = str(record.get("model", "")), str(members.index(node))
    figures.add(
        "gb10_engine_active_info",
        1,
        model=model,
        served_name=str(record.get("served_name", "")),
        repo=str(record.get("repo", "")),
        rank=rank,
        ranks=str(len(members)),
    )
    figures.add("gb10_engine_rank_up", unit.get("ActiveState") == "active", model=model, rank=rank)
    figures.add("gb10_engine_rank_restarts", number(unit.get("NRestarts", "")) or 0, model=model, rank=rank)


def rdma(figures: Figures, root: Path) -> list[str]:
    """Add every port below /sys/class/infiniband; returns the network devices that belong to these ports.

    Of a port that never had a link the state alone is told.
    """
    devices: list[str] = []
    for device in sorted(root.iterdir()) if root.is_dir() else []:
        devices += sorted(path.name for path in device.glob("device/net/*"))
        for port in sorted((device / "ports").glob("[0-9]*")):
            labels = {"device": device.name, "kind": "rdma", "port": port.name}
            # e.g. "4: ACTIVE"
            figures.add("gb10_fabric_link_up", "ACTIVE" in read(port / "state"), **labels)
            for name, direction in (("port_rcv_data", "in"), ("port_xmit_data", "out")):
                words = number(read(port / "counters" / name))
                if words is not None:
                    figures.add("gb10_fabric_bytes_total", words * BYTES_PER_WORD, **labels, direction=direction)
            for name in EVENTS:
                for folder in ("hw_counters", "counters"):
                    count = number(read(port / folder / name))
                    if count is not None:
                        figures.add("gb10_rdma_events_total", count, device=device.name, port=port.name, event=name)
                        break
    return devices


def holders(addresses: Iterable[str], listing: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the devices that hold one of the addresses, from ``ip -json address``."""
    wanted = set(addresses)
    return [
        str(link["ifname"])
        for link in listing
        if wanted & {str(entry.get("local")) for entry in link.get("addr_info", [])}
    ]


def netdevs(figures: Figures, root: Path, devices: Iterable[str]) -> None:
    """Add link and traffic of network devices, from /sys/class/net."""
    for name in dict.fromkeys(devices):
        labels = {"device": name, "kind": "netdev", "port": "1"}
        # "carrier" cannot be read while the device is administratively down: that is no link either.
        figures.add("gb10_fabric_link_up", read(root / name / "carrier") == "1", **labels)
        for file, direction in (("rx_bytes", "in"), ("tx_bytes", "out")):
            count = number(read(root / name / "statistics" / file))
            if count is not None:
                figures.add("gb10_fabric_bytes_total", count, **labels, direction=direction)


def disks(figures: Figures, paths: Iterable[str]) -> None:
    """Add free space and size of the file systems that hold the paths, each file system once."""
    seen = set()
    for path in paths:
        place = Path(path)
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        usage = os.statvfs(place)
        figures.add("gb10_disk_free_bytes", usage.f_bavail * usage.f_frsize, path=path)
        figures.add("gb10_disk_size_bytes", usage.f_blocks * usage.f_frsize, path=path)


def allocated_bytes(folder: Path) -> int:
    """Return what the files below a folder occupy; the apparent size of a partial file can be its full one."""
    total = 0
    for path, _folders, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total


def unit_properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd tells them; an empty dictionary when it does not answer."""
    try:
        done = subprocess.run(
            ["systemctl", "show", unit, f"--property={','.join(names)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def addresses_json() -> list[dict[str, Any]]:
    """Return what ``ip -json address`` lists."""
    try:
        done = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=False, timeout=10)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return found


def collect(told: Mapping[str, Any], now_s: float) -> str:
    """Return all figures of this node as text."""
    figures = Figures()
    figures.add("gb10_collector_time_seconds", now_s)
    figures.add("gb10_limit_memory_floor_bytes", told["memory_floor_gib"] * 2**30)
    figures.add("gb10_limit_disk_floor_bytes", told["disk_floor_gib"] * 2**30)
    record = read_json(Path(told["active"]))
    unit = unit_properties(str(record["unit"]), "ActiveState", "NRestarts") if record.get("unit") else {}
    engine(figures, record, told["node"], unit)
    watch(figures, read_json(Path(told["watch"])), now_s)
    listing = addresses_json()
    devices = rdma(figures, Path(told["infiniband"]))
    netdevs(figures, Path("/sys/class/net"), [*holders(told["fabric_addresses"], listing), *devices])
    disks(figures, told["disk_paths"])
    figures.add("gb10_transfer_incoming_bytes", allocated_bytes(Path(told["weights_root"]) / ".incoming"))
    for name in told["transfer_units"]:
        active = unit_properties(name, "ActiveState").get("ActiveState") == "active"
        figures.add("gb10_transfer_unit_active", active, unit=name)
    return figures.text()


def place(text: str, target: Path) -> None:
    """Write the figures beside their place and rename them there, readable by the node exporter."""
    # The exporter reads *.prom, so that it never reads this one.
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(target)


def main(arguments: Sequence[str]) -> None:
    """Collect by the description that the first argument names, once with ``--once``, else for ever."""
    description = Path(arguments[0])
    while True:
        told = json.loads(description.read_text(encoding="utf-8"))
        place(collect(told, time.time()), Path(told["target"]))
        if "--once" in arguments:
            return
        time.sleep(float(told["interval_s"]))


if __name__ == "__main__":
    main(sys.argv[1:])
