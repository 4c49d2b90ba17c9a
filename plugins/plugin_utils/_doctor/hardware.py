# SPDX-License-Identifier: Apache-2.0
"""Checks of what a GB10's hardware, firmware and driver do, and not only of whether they are there; pure.

The levels are what owners report as good or bad in autumn 2026: kernel 6.17.0-1032 with driver 580.159.03, ConnectX-7
firmware 28.45.4028; to be avoided are driver 590 and BIOS versions before April 2026, which wire the network controller
with two lanes. Clocks of 690 to 890 MHz under load and 8 to 25 Gb/s over a link of 200 Gb/s are low-power states that
end when the power is pulled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import carries, from_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import FAIL, WARN, Check, Limits

#: Load from which a clock is judged, and the share of the maximum below which it counts as stuck.
BUSY_PERCENT, STUCK_SHARE = 50.0, 0.4
#: Rates of the ConnectX-7's low-power state, in Gb/s, and what the link has negotiated then.
LOW_POWER_GBPS, FULL_MBPS = (8.0, 25.0), 200_000
KNOWN_NIC_FIRMWARE = "28.45.4028"
#: Year and month of the first BIOS that wires the network controller with four lanes.
KNOWN_BIOS = (2026, 4)
_BIOS_DATE = re.compile(r"(?P<month>\d\d)/(?P<day>\d\d)/(?P<year>\d{4})$")
_POWER_OFF = "Shut the node down, pull its power cable for a minute, and start it again; a warm reboot is not enough."


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def gpu_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    """Return the checks of driver, containers, clocks, the next boot and the system's firmware."""
    gpu = node["gpu"]
    if not gpu["present"]:
        checks = [_no_driver(node)] if limits.gpu else []
    else:
        checks = [_driver(node), _containers(node), *_clock(node), *_next_boot(node)]
    if node.get("reboot_required"):
        waiting = ", ".join(node["reboot_required"])
        checks.append(
            Check("pending reboot", waiting, WARN, "Reboot at a quiet moment: a new driver and the running one differ.")
        )
    if node.get("bios"):
        checks.append(_bios(str(node["bios"]), str(node["os"]["arch"])))
    return checks


def _no_driver(node: Mapping[str, Any]) -> Check:
    library, kernel = str(node.get("gpu_library") or ""), str(node["os"]["kernel"])
    if not library:
        return Check("GPU driver", "none", FAIL, "Install it; without one nothing is served.")
    return Check(
        "GPU driver",
        f"the libraries are {library}, and no module is loaded in kernel {kernel}",
        FAIL,
        f"`modprobe nvidia` says why. Mostly the kernel was updated without the driver's modules: install them "
        f"(linux-modules-nvidia-…-{kernel}, or `dkms autoinstall -k {kernel}`), or boot the kernel before.",
    )


def _driver(node: Mapping[str, Any]) -> Check:
    loaded, library = str(node["gpu"]["driver"]), str(node.get("gpu_library") or "")
    shown = loaded or "present, version unknown"
    if loaded and library and loaded != library:
        return Check(
            "GPU driver",
            f"{loaded} is loaded, the libraries are {library}",
            FAIL,
            "Reboot: the driver was updated under the running one, and no new container gets the GPU. Then hold its "
            "packages (`apt-mark hold`).",
        )
    if node.get("gpu_error"):
        return Check("GPU driver", f"{shown}; nvidia-smi: {node['gpu_error']}", FAIL, "See `nvidia-smi` and `dmesg`.")
    if loaded.startswith("590."):
        return Check(
            "GPU driver", shown, WARN, "Owners report faults with 590 on GB10: use 580.159.03 or later of 580."
        )
    return Check("GPU driver", shown)


def _containers(node: Mapping[str, Any]) -> Check:
    name = "GPU in containers"
    docker = node["docker"]
    if not node["gpu"]["container_toolkit"]:
        return Check(
            name,
            "nvidia-container-toolkit is missing",
            FAIL,
            "Install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker; systemctl restart "
            "docker.",
        )
    live = node.get("docker_runtimes") or docker["runtimes"]
    if "nvidia" in live:
        return Check(name, "runtime nvidia")
    if docker["cdi"]:
        return Check(
            name,
            "CDI, without the runtime nvidia",
            WARN,
            "engine_gpu_args asks for the runtime unless you changed it, and no engine would start: nvidia-ctk runtime "
            "configure --runtime=docker; systemctl restart docker.",
        )
    why = (
        "daemon.json names the runtime, but Docker runs without it" if "nvidia" in docker["runtimes"] else "not set up"
    )
    return Check(
        name,
        f"neither the runtime nvidia nor a CDI description: {why}",
        FAIL,
        "nvidia-ctk runtime configure --runtime=docker; systemctl restart docker. Then test with `docker run --rm "
        "--gpus all <image> nvidia-smi`.",
    )


def _clock(node: Mapping[str, Any]) -> list[Check]:
    sample = node.get("gpu_sample") or {}
    clock, highest, busy = sample.get("sm_mhz"), sample.get("sm_max_mhz"), sample.get("busy_percent")
    cap = int(node["gpu"].get("clock_cap_mhz") or 0)
    if clock is None:
        return [Check("GPU clock", f"capped at {cap} MHz (host_gpu_max_clock_mhz)")] if cap else []
    if cap and highest:
        highest = min(highest, float(cap))
    parts = [
        f"{clock:.0f} MHz" + (f" of {highest:.0f}" if highest else ""),
        f"capped at {cap} MHz (host_gpu_max_clock_mhz)" if cap else "",
        "" if busy is None else f"{busy:.0f} % busy",
        "" if sample.get("power_w") is None else f"{sample['power_w']:.0f} W",
        "" if sample.get("power_limit_w") is None else f"limit {sample['power_limit_w']:.0f} W",
        *sample.get("brakes", []),
    ]
    shown = ", ".join(filter(None, parts))
    loaded = (busy or 0.0) >= BUSY_PERCENT
    if loaded and highest and clock < STUCK_SHARE * highest:
        return [Check("GPU clock", shown, WARN, f"The clock is stuck low under load. {_POWER_OFF}")]
    if sample.get("brakes"):
        return [
            Check("GPU clock", shown, WARN, f"The GPU is held back: check cooling and the power supply. {_POWER_OFF}")
        ]
    if loaded:
        return [Check("GPU clock", shown)]
    if node.get("gpu_load_error"):
        return [Check("GPU clock", shown, WARN, f"It could not be judged under load: {node['gpu_load_error']}")]
    return [Check("GPU clock", f"{shown}; idle, so not judged (doctor_load_image makes a short load)")]


def _next_boot(node: Mapping[str, Any]) -> list[Check]:
    coming = node.get("kernel_next") or {}
    if not coming.get("version") or coming.get("nvidia"):
        return []
    return [
        Check(
            "next kernel",
            f"{coming['version']} has no nvidia.ko",
            WARN,
            "After the next boot there is no GPU: install the driver's modules for that kernel "
            f"(linux-modules-nvidia-…-{coming['version']}, or `dkms autoinstall -k {coming['version']}`).",
        )
    ]


def _bios(bios: str, arch: str) -> Check:
    date = _BIOS_DATE.search(bios)
    if arch == "aarch64" and date and (int(date["year"]), int(date["month"])) < KNOWN_BIOS:
        return Check(
            "firmware",
            bios,
            WARN,
            "BIOS versions before 2026-04 can leave the ConnectX-7 with two lanes: fwupdmgr refresh; fwupdmgr update.",
        )
    return Check("firmware", bios)


def nic_level(firmware: str) -> list[tuple[str, str]]:
    """Return level and sentence where a ConnectX-7's firmware is older than the one reported good."""
    if not firmware.startswith("28.") or _numbers(firmware) >= _numbers(KNOWN_NIC_FIRMWARE):
        return []
    return [(WARN, f"Firmware {KNOWN_NIC_FIRMWARE} is reported good: fwupdmgr refresh; fwupdmgr update.")]


def throughput_state(reports: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Return a check for each pair whose throughput is that of the ConnectX-7's low-power state."""

    def speed_mbps(name: str) -> int:
        facts, ping = reports[name].get("fabric"), reports[name].get("ping")
        netdev = carries(from_dict(facts["machine"]), ping["address"]) if facts and ping else None
        return (netdev.speed_mbps or 0) if netdev else 0

    found = []
    for source, data in reports.items():
        for target, sent in (data.get("sent") or {}).items():
            rate = float(sent.get("gbps") or 0.0)
            slow = LOW_POWER_GBPS[0] <= rate <= LOW_POWER_GBPS[1]
            if slow and target in reports and min(speed_mbps(source), speed_mbps(target)) >= FULL_MBPS:
                found.append(
                    Check(
                        "throughput",
                        f"{source} -> {target}: {rate:.1f} Gb/s over a link of {FULL_MBPS // 1000} Gb/s: a ConnectX-7 "
                        "is in its low-power state",
                        FAIL,
                        f"On both nodes: update the firmware (fwupdmgr). {_POWER_OFF}",
                    )
                )
    return found
