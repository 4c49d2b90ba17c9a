# SPDX-License-Identifier: Apache-2.0
"""Collect what a node reports to Prometheus beside its node exporter: engine, health check, fabric, disks, transfers.

Reads its description (JSON, written by the role monitor) periodically and writes one file in Prometheus' text form into
the node exporter's textfile directory, completely or not at all.  Changes nothing else.  Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric import rdma
from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run
from ansible_collections.gb10.cluster.plugins.module_utils._node.facts import parse_systemctl_show

#: The states that the probe and the watch know; another word is reported as "unknown".
STATES = ("absent", "starting", "ready", "wrong_model", "degraded", "wedged", "dead", "unknown")
#: sysfs counts what crosses an InfiniBand or RoCE port in units of four bytes.
BYTES_PER_WORD = 4
COMMAND_SECONDS = 10.0
#: A state that was not checked for this long is unknown; a check may take minutes.
WATCH_OLD_S = 1800.0
HELP = {
    "gb10_collector_time_seconds": "When this node's figures were read.",
    "gb10_limit_memory_floor_bytes": "The steady floor: MemAvailable below this is too little.",
    "gb10_limit_disk_floor_bytes": "Free space below this is too little.",
    "gb10_engine_active_info": "The model that is recorded as the active one on this node.",
    "gb10_engine_rank_up": "Whether the unit of this node's rank is active.",
    "gb10_engine_rank_restarts": "How often systemd has restarted the rank's unit.",
    "gb10_watch_present": "Whether there is a readable state of the watch on this node.",
    "gb10_watch_state": "1 for the state that the watch reports.",
    "gb10_watch_since_seconds": "When the watch's state was entered.",
    "gb10_watch_looked_seconds": "When the watch has checked last.",
    "gb10_fabric_link_up": "Whether a port of the fabric has a link.",
    "gb10_fabric_bytes_total": "What crossed a port of the fabric, by who counts it: the network stack, or RDMA.",
    "gb10_rdma_events_total": "Errors and congestion that an RDMA port has counted.",
    "gb10_disk_free_bytes": "Free space of the file system that holds a path.",
    "gb10_disk_size_bytes": "Size of the file system that holds a path.",
    "gb10_transfer_incoming_bytes": "What has arrived of weights that are not yet in place.",
    "gb10_transfer_unit_active": "Whether a unit that moves images or weights is active.",
}
COUNTERS = ("gb10_fabric_bytes_total", "gb10_rdma_events_total")
#: Counters below .../counters and .../hw_counters that show trouble; the rest is traffic or zero by nature.
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
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def watch(figures: Figures, state: Mapping[str, Any], now_s: float) -> None:
    """Add the state that the health check records; one that was not checked for long is unknown."""
    figures.add("gb10_watch_present", 1 if state.get("state") else 0)
    if not state.get("state"):
        return
    looked = since_seconds(state.get("looked"))
    old = looked is not None and now_s - looked > WATCH_OLD_S
    word = state["state"] if state["state"] in STATES and not old else "unknown"
    for each in STATES:
        figures.add("gb10_watch_state", each == word, state=each)
    since = since_seconds(state.get("since"))
    if since is not None:
        figures.add("gb10_watch_since_seconds", since)
    if looked is not None:
        figures.add("gb10_watch_looked_seconds", looked)


def engine(figures: Figures, record: Mapping[str, Any], node: str, unit: Mapping[str, str]) -> None:
    """Add the active model and the rank of this node; ``unit`` is what systemd reports of the rank's unit."""
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


def rdma_ports(figures: Figures, root: Path) -> list[str]:
    """Add every port below /sys/class/infiniband; returns the network devices that belong to these ports.

    Of a port that never had a link the state alone is reported.
    """
    netdevs: list[str] = []
    for device in rdma.devices(root):
        netdevs += device.netdevs
        for port in device.ports:
            labels = {"device": device.name, "kind": "rdma", "port": port.number}
            figures.add("gb10_fabric_link_up", port.active, **labels)
            for name, direction in (("port_rcv_data", "in"), ("port_xmit_data", "out")):
                words = number(read(port.folder / "counters" / name))
                if words is not None:
                    figures.add("gb10_fabric_bytes_total", words * BYTES_PER_WORD, **labels, direction=direction)
            for name in EVENTS:
                for folder in ("hw_counters", "counters"):
                    count = number(read(port.folder / folder / name))
                    if count is not None:
                        figures.add("gb10_rdma_events_total", count, device=device.name, port=port.number, event=name)
                        break
    return netdevs


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
        place = files.existing(Path(path))
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        usage = os.statvfs(place)
        figures.add("gb10_disk_free_bytes", usage.f_bavail * usage.f_frsize, path=path)
        figures.add("gb10_disk_size_bytes", usage.f_blocks * usage.f_frsize, path=path)


def unit_properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd reports them; an empty dictionary when it does not answer."""
    return parse_systemctl_show(run(["systemctl", "show", unit, f"--property={','.join(names)}"], COMMAND_SECONDS)[1])


def addresses_json() -> list[dict[str, Any]]:
    """Return what ``ip -json address`` lists."""
    try:
        found: list[dict[str, Any]] = json.loads(run(["ip", "-json", "address"], COMMAND_SECONDS)[1] or "[]")
    except ValueError:
        return []
    return found


def collect(description: Mapping[str, Any], now_s: float) -> str:
    """Return all figures of this node as text."""
    figures = Figures()
    figures.add("gb10_collector_time_seconds", now_s)
    figures.add("gb10_limit_memory_floor_bytes", description["memory_floor_gib"] * 2**30)
    figures.add("gb10_limit_disk_floor_bytes", description["disk_floor_gib"] * 2**30)
    record = files.read_json(description["active"])
    unit = unit_properties(str(record["unit"]), "ActiveState", "NRestarts") if record.get("unit") else {}
    engine(figures, record, description["node"], unit)
    watch(figures, files.read_json(description["watch"]), now_s)
    devices = rdma_ports(figures, Path(description["infiniband"]))
    fabric = holders(description["fabric_addresses"], addresses_json())
    netdevs(figures, Path("/sys/class/net"), [*fabric, *devices])
    disks(figures, description["disk_paths"])
    figures.add("gb10_transfer_incoming_bytes", files.used_bytes(Path(description["weights_root"]) / ".incoming"))
    for name in description["transfer_units"]:
        active = unit_properties(name, "ActiveState").get("ActiveState") == "active"
        figures.add("gb10_transfer_unit_active", active, unit=name)
    return figures.text()


def main(argv: Sequence[str]) -> None:
    """Collect by the description: once with ``--once``, else indefinitely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("description", type=Path, help="JSON file written by the role monitor")
    parser.add_argument("--once", action="store_true", help="write the figures once and end")
    given = parser.parse_args(argv)
    while True:
        description = json.loads(given.description.read_text(encoding="utf-8"))
        # Readable by the node exporter, which runs as a user of its own.
        files.write(description["target"], collect(description, time.time()), 0o644)
        if given.once:
            return
        time.sleep(float(description["interval_seconds"]))
