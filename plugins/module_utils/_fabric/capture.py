# SPDX-License-Identifier: Apache-2.0
"""Read what `ports.parse_capture` needs from this machine.  Standard library only: modules and programs share it."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run

SYS = Path("/sys")
NETDEV_FILES = ("address", "carrier", "flags", "mtu", "operstate", "speed")
DEVICE_FILES = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width", "vendor", "device")
HCA_FILES = ("fw_ver", "node_guid")
HCA_PORT_FILES = ("link_layer", "phys_state", "rate", "state")
TIMEOUT_SECONDS = 90.0


def read(path: Path) -> str | None:
    """Return a file's text; None where the kernel has nothing to say (a speed without carrier)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def output(*command: str) -> str:
    """Return the output of a command; empty when it is not installed, fails, or does not end within 90 s."""
    code, out, _err = run(command, TIMEOUT_SECONDS)
    return out if code == 0 else ""


def sysfs(root: Path = SYS) -> dict[str, str]:
    """Return network devices and HCAs: paths relative to /sys, and their files' text."""
    tree: dict[str, str] = {}

    def put(path: Path, text: str | None) -> None:
        if text is not None:
            tree[str(path.relative_to(root))] = text

    for netdev in sorted((root / "class/net").iterdir()):
        for name in NETDEV_FILES:
            put(netdev / name, read(netdev / name))
        device = netdev / "device"
        if not device.exists():
            continue
        put(device, str(device.resolve()))
        put(device / "driver", str((device / "driver").resolve()) if (device / "driver").exists() else None)
        for name in DEVICE_FILES:
            put(device / name, read(device / name))
        for hca in sorted((device / "infiniband").glob("*")):
            put(hca, "")
    for hca in sorted((root / "class/infiniband").glob("*")):
        for name in HCA_FILES:
            put(hca / name, read(hca / name))
        port = hca / "ports/1"
        for name in HCA_PORT_FILES:
            put(port / name, read(port / name))
        for gid in sorted((port / "gids").glob("*")):
            value = read(gid)
            if value and value.strip("0:"):
                put(gid, value)
                for attribute in ("types", "ndevs"):
                    put(port / "gid_attrs" / attribute / gid.name, read(port / "gid_attrs" / attribute / gid.name))
    return tree


def collect() -> dict[str, str]:
    """Return everything that ``parse_capture`` reads, and the meminfo that shows the KHO fault."""
    tree = sysfs()
    tree["ip"] = output("ip", "-json", "address", "show")
    tree["nmcli"] = output("nmcli", "--terse", "--fields", "DEVICE,STATE", "device")
    tree["networkctl"] = output("networkctl", "--json=short", "list") or output("networkctl", "--no-legend", "list")
    tree["netplan"] = output("sh", "-c", "command -v netplan")
    for unit in ("NetworkManager.service", "systemd-networkd.service"):
        tree[f"active/{unit}"] = output("systemctl", "is-active", unit).strip()
    tree["meminfo"] = read(Path("/proc/meminfo")) or ""
    return tree
