# SPDX-License-Identifier: Apache-2.0
"""Reading what iperf3 and perftest measured, and naming the node that is slow; pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed, shaped

#: What is read of iperf3's report.
_IPERF3 = {"error": None, "end": {"sum_received": {"bits_per_second": float}}}


#: What is read of a measurement between two nodes.
_MEASURED = {"gbps": 0.0, "error": ""}

#: Characters of a tool's own words in a message.
MAX_WORDS = 500


class MeasurementError(ValueError):
    """The tool did not measure; the message is its own words."""


def parse_iperf3(text: str) -> float:
    """Return what the receiver got, in Gb/s, from ``iperf3 --json``.

    Raises:
        MeasurementError: the run ended with an error, or printed something else.
    """
    report = parsed(text)
    if not isinstance(report, dict):
        raise MeasurementError(text.strip()[:MAX_WORDS] or "iperf3 printed nothing")
    report = shaped(report, _IPERF3)
    if report["error"]:
        raise MeasurementError(str(report["error"])[:MAX_WORDS])
    received = report["end"]["sum_received"]["bits_per_second"]
    if received is None:
        raise MeasurementError("iperf3 reported no received total")
    return float(received) / 1e9


def parse_ib_bandwidth(text: str) -> float:
    """Return the average of the last row, in Gb/s, from ``ib_write_bw --report_gbits``.

    The table's columns are bytes, iterations, peak, average, message rate.

    Raises:
        MeasurementError: there is no such row.
    """
    rows = [line.split() for line in text.splitlines()]
    figures = [row for row in rows if len(row) >= 5 and row[0].isdigit() and row[1].isdigit()]
    if not figures:
        words = [line.strip() for line in text.splitlines() if line.strip()]
        raise MeasurementError(words[-1][:MAX_WORDS] if words else "ib_write_bw printed nothing")
    try:
        average = float(figures[-1][3])
    except ValueError:
        average = math.nan
    if not math.isfinite(average):
        raise MeasurementError(f"ib_write_bw printed no average: {' '.join(figures[-1])[:MAX_WORDS]}")
    return average


def slow_links(
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    rates_gbps: Mapping[str, float],
    floor: float,
    forwarded: Collection[tuple[str, str]] = (),
) -> list[str]:
    """Return a sentence for each node, or pair of nodes, whose throughput is below the floor.

    Args:
        measured: by sender and receiver, ``gbps`` (0 when nothing was measured) and ``error``.
        rates_gbps: what each node's link has negotiated.
        floor: the share of the slower end's rate that must be reached.
        forwarded: pairs whose packets pass another node, as in a ring of four; half of the floor counts for them,
            because in their round each cable carries two streams.
    """
    slow: dict[tuple[str, str], tuple[float, float]] = {}
    problems = []
    found = {source: targets for source, targets in measured.items() if isinstance(targets, Mapping)}
    for source, targets in found.items():
        for target, given in targets.items():
            result = shaped(given, _MEASURED)
            if result["error"]:
                why = result["error"][:MAX_WORDS]
                problems.append(f"{source} -> {target}: the throughput could not be measured: {why}.")
                continue
            wanted = floor * min(rates_gbps.get(source, 0.0), rates_gbps.get(target, 0.0))
            if (source, target) in forwarded:
                wanted /= 2
            if float(result["gbps"]) < wanted:
                slow[source, target] = (float(result["gbps"]), wanted)
    left = dict(slow)
    names = sorted({name for pair in slow for name in pair})
    for name in names:
        others = [peer for peer in found if peer != name]
        # One direction of a shaped or damaged link is enough to slow a node against everyone.
        sends = [(name, peer) for peer in others if peer in found.get(name, ())]
        receives = [(peer, name) for peer in others if name in found[peer]]
        for pairs, way in ((sends, "sends"), (receives, "receives")):
            if len(pairs) > 1 and all(pair in slow for pair in pairs):
                best = max(slow[pair][0] for pair in pairs)
                wanted = min(slow[pair][1] for pair in pairs)
                problems.append(
                    f"{name} {way} at {best:.2f} Gb/s at best, to or from any other node, where at least {wanted:.2f} "
                    f"Gb/s are expected ({floor:.0%} of the link). Check its cable, its port and `ethtool -S`."
                )
                for pair in pairs:
                    left.pop(pair, None)
    problems += [
        f"{source} -> {target}: {got:.2f} Gb/s, where at least {wanted:.2f} Gb/s are expected ({floor:.0%} of the "
        "link). Check both cables and the switch's ports."
        for (source, target), (got, wanted) in left.items()
    ]
    return problems
