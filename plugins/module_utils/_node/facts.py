# SPDX-License-Identifier: Apache-2.0
"""Readers for what a Linux node says of itself; text in, plain values out."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

KIB_PER_GIB = 1024 * 1024


def parse_os_release(text: str) -> dict[str, str]:
    """Return the variables of ``/etc/os-release`` or ``/etc/dgx-release``, unquoted."""
    result: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if not separator or name.lstrip().startswith("#"):
            continue
        words = shlex.split(value)
        result[name.strip()] = words[0] if words else ""
    return result


def parse_meminfo(text: str) -> dict[str, int]:
    """Return ``/proc/meminfo`` in KiB (counts, as of huge pages, as they are)."""
    result: dict[str, int] = {}
    for line in text.splitlines():
        name, _unused, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            result[name.strip()] = int(words[0])
    return result


def available_gib(meminfo: str) -> float:
    """Return MemAvailable in GiB from the text of /proc/meminfo; infinite when the kernel does not report it."""
    kib = parse_meminfo(meminfo).get("MemAvailable")
    return float("inf") if kib is None else kib / KIB_PER_GIB


def kho_fault(meminfo_kib: Mapping[str, int]) -> bool:
    """Return whether this kernel shows the kexec-handover fault.

    Kernel 7.0.0-1019 on GB10 hands its scratch areas to the CMA allocator twice; the
    signature is more free CMA memory than there is. Memory registration for RDMA then
    fails with ENOMEM; booting with ``kho=off`` cures it.
    """
    return meminfo_kib.get("CmaFree", 0) > meminfo_kib.get("CmaTotal", 0)


def parse_systemctl_show(text: str) -> dict[str, str]:
    """Return the properties that ``systemctl show`` printed for one unit."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def unit_names(text: str) -> list[str]:
    """Return the first column of ``systemctl list-units --plain --no-legend``."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def sysctl_path(name: str) -> str:
    """Return the file of a kernel setting below /proc/sys; a slash in a name is a dot in an interface's name."""
    return name.replace(".", "\0").replace("/", ".").replace("\0", "/")


@dataclass(frozen=True)
class Listener:
    """A TCP socket that waits for connections; ``inode`` tells whose it is."""

    address: str
    port: int
    inode: str

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all addresses."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def loopback(self) -> bool:
        """Whether only the node itself reaches it."""
        return ipaddress.ip_address(self.address).is_loopback


def parse_tcp_listeners(text: str) -> list[Listener]:
    """Return the listening sockets of ``/proc/net/tcp`` or ``/proc/net/tcp6``.

    Addresses stand there as 32-bit words in the machine's byte order; both of ours are little-endian.
    """
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != "0A":
            continue
        raw, _unused, port = words[1].partition(":")
        data = b"".join(bytes.fromhex(raw[index : index + 8])[::-1] for index in range(0, len(raw), 8))
        address = ipaddress.ip_address(data)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        found.append(Listener(str(address), int(port, 16), words[9]))
    return found


def blacklist(text: str) -> list[str]:
    """Return what a configuration of apt keeps unattended upgrades from, patterns of package names in its order."""
    found = re.search(r"^Unattended-Upgrade::Package-Blacklist\s*\{([^}]*)\}", text, re.MULTILINE)
    return re.findall(r'^\s*"([^"]+)"\s*;', found[1], re.MULTILINE) if found else []
