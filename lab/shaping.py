# SPDX-License-Identifier: Apache-2.0
"""Link rates of a lab, as pure functions: parsing, tc command lines, and what tc reports back.

Each node's link is a veth pair. What the node sends is shaped inside the node, what it receives is
shaped at the host's end of the pair, so that the rate holds in both directions, for one stream as
for several that meet at one receiver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lab.errors import LabError
from lab.plan import Net

#: 1 GbE management against a 200 GbE fabric.
FABRIC_TO_MGMT = 200

_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(bit|kbit|mbit|gbit)(?:/s|ps)?", re.IGNORECASE)

#: A token bucket must hold what arrives between two timer ticks (4 ms at 250 Hz) and at least two
#: of the largest segments that a veth passes on in one piece (64 KiB).
_TICK_S = 0.004
_MIN_BURST_BYTES = 2 * 65536
#: Queue before the bucket, as time. A slow link gets a longer one: TCP needs room for a burst.
_QUEUE_MS: dict[Net, int] = {"mgmt": 50, "fabric": 10}


@dataclass(frozen=True)
class Rates:
    """Rates of both links of every node, bits per second; None means unshaped."""

    mgmt_bits_per_s: int | None
    fabric_bits_per_s: int | None

    def of(self, net: Net) -> int | None:
        """Return the rate of ``net`` in bits per second, or None."""
        return self.mgmt_bits_per_s if net == "mgmt" else self.fabric_bits_per_s


@dataclass(frozen=True)
class HostLink:
    """The host's end of one link: its interface index there, its rate, and whether it is cut."""

    ifindex: int
    net: Net
    bits_per_s: int | None
    cut: bool


def parse_rate(text: str) -> int:
    """Return ``text`` such as ``50mbit`` or ``10gbit`` in bits per second; raise LabError."""
    match = _RATE.fullmatch(text.strip())
    bits = int(float(match[1]) * _UNITS[match[2].lower()]) // 8 * 8 if match else 0  # tc counts bytes
    if bits < 64_000:
        raise LabError(
            f"{text!r} is not a rate of a link: write a number and a unit, such as 50mbit or "
            "10gbit; 64kbit is the least."
        )
    return bits


def format_rate(bits_per_s: int | None) -> str:
    """Return a rate for people: ``50 Mbit/s``, ``10 Gbit/s``, ``unshaped``."""
    if bits_per_s is None:
        return "unshaped"
    for unit, size in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if bits_per_s >= size:
            return f"{bits_per_s / size:.4g} {unit}"
    return f"{bits_per_s} bit/s"


def decide_rates(fabric: str | None, mgmt: str | None, unshaped: bool, before: Rates | None, default: Rates) -> Rates:
    """Return the rates to apply.

    What was asked for wins; one rate alone sets the other in the proportion 1:200; with nothing
    asked the lab keeps the rates it had (``before``), and a new one gets ``default``.
    """
    if unshaped:
        if fabric or mgmt:
            raise LabError("--unshaped and a rate contradict each other: give one of them.")
        return Rates(None, None)
    if fabric is None and mgmt is None:
        return before or default
    fabric_bits = parse_rate(fabric) if fabric else None
    mgmt_bits = parse_rate(mgmt) if mgmt else None
    if mgmt_bits is None and fabric_bits is not None:
        mgmt_bits = fabric_bits // FABRIC_TO_MGMT // 8 * 8
    if fabric_bits is None and mgmt_bits is not None:
        fabric_bits = mgmt_bits * FABRIC_TO_MGMT
    return Rates(mgmt_bits, fabric_bits)


def burst_bytes(bits_per_s: int) -> int:
    """Return the token bucket's size in bytes for a rate in bits per second."""
    return max(_MIN_BURST_BYTES, int(bits_per_s / 8 * _TICK_S))


def qdisc_command(device: str, net: Net, bits_per_s: int | None) -> str:
    """Return the shell command that gives ``device`` its rate, or takes it away when None.

    ``device`` stands in the command as it is: a literal interface name or a shell variable.
    """
    if bits_per_s is None:
        return f"tc qdisc del dev {device} root 2>/dev/null || true"
    return (
        f"tc qdisc replace dev {device} root tbf rate {bits_per_s}bit "
        f"burst {burst_bytes(bits_per_s)}b latency {_QUEUE_MS[net]}ms"
    )


def host_script(links: Iterable[HostLink]) -> str:
    """Return the shell script that sets every host-side end: rate, and carrier up or down.

    Taking the host's end down takes the carrier from the node's end, which keeps its address: that
    is what a pulled cable looks like from inside.
    """
    lines = ["set -eu"]
    for link in links:
        state = "down" if link.cut else "up"
        lines += [
            f"dev=$(grep -lx {link.ifindex} /sys/class/net/*/ifindex | cut -d/ -f5)",
            f'test -n "$dev" || {{ echo "no interface with index {link.ifindex}" >&2; exit 1; }}',
            qdisc_command('"$dev"', link.net, link.bits_per_s),
            f'ip link set dev "$dev" {state}',
        ]
    return "\n".join(lines) + "\n"
