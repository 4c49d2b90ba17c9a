# SPDX-License-Identifier: Apache-2.0
"""Readers for what a node says of its GPU, its driver and the next boot; text in, plain values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: What is asked of ``nvidia-smi``; a GB10 answers [N/A] to some of it.
SMI_QUERY = "clocks.sm,clocks.max.sm,utilization.gpu,power.draw,enforced.power.limit,clocks_event_reasons.active"
_SMI_KEYS = ("sm_mhz", "sm_max_mhz", "busy_percent", "power_w", "power_limit_w")
#: Bits of NVML's clocks event reasons that say that something is wrong (nvml.h, nvmlClocksEventReason*).
_BRAKES = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_LIBRARY = re.compile(r"libnvidia-ml\.so\.(?P<version>\d+\.\d+(?:\.\d+)?)$")
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def parse_smi(text: str) -> dict[str, Any]:
    """Return one answer of ``nvidia-smi --query-gpu=SMI_QUERY --format=csv,noheader,nounits``; empty when it is none.

    Clocks in MHz, power in W, load in percent, None for what the GPU does not report; ``brakes`` in words.
    """
    fields = [field.strip() for field in text.strip().partition("\n")[0].split(",")]
    if len(fields) != len(_SMI_KEYS) + 1:
        return {}

    def number(field: str) -> float | None:
        try:
            return float(field)
        except ValueError:
            return None

    found: dict[str, Any] = dict(zip(_SMI_KEYS, map(number, fields), strict=False))
    try:
        reasons = int(fields[-1], 16)
    except ValueError:
        reasons = 0
    found["brakes"] = [words for bit, words in _BRAKES.items() if reasons & bit]
    return found


def busiest(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sample with the highest load and, of those, the highest clock; empty when there is none."""
    answers = [dict(each) for each in samples if each]
    return max(answers, key=lambda each: (each["busy_percent"] or 0.0, each["sm_mhz"] or 0.0), default={})


def library_version(names: Iterable[str]) -> str:
    """Return the version of the installed driver libraries from the names of libnvidia-ml's files, or nothing."""
    found = [match.group("version") for name in names if (match := _LIBRARY.search(name))]
    return max(found, key=lambda version: [int(part) for part in version.split(".")], default="")


def container_id(cgroup: str) -> str:
    """Return the id of the container that a process runs in, from its ``/proc/<pid>/cgroup``, or nothing."""
    found = _CONTAINER.search(cgroup)
    return found.group() if found else ""
