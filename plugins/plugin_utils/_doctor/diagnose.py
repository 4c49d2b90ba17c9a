# SPDX-License-Identifier: Apache-2.0
"""Checks of a cluster's nodes: each OK, WARN or FAIL, with a remedy; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.findings import findings, mtu_remedy
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import carries, from_dict
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.engine import engine_checks
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.hardware import (
    gpu_checks,
    nic_level,
    throughput_state,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import (
    FAIL,
    OK,
    RANK,
    WARN,
    Check,
    Limits,
    Report,
    judged,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._fabric.verdict import common_mtu, verdict


def diagnose(reports: Mapping[str, Mapping[str, Any]], limits: Mapping[str, Limits]) -> Report:
    """Return the report on a cluster.

    Args:
        reports: by node, ``node`` (of gb10.cluster.node_facts with ``detail``), ``fabric`` (of
            gb10.cluster.fabric_facts), ``ping`` (of gb10.cluster.fabric_ping), ``skew`` (of gb10.cluster.clock_skew),
            ``slow`` (sentences about throughput); without ``node`` the node did not answer, and ``error`` may say why.
        limits: what is healthy, by node.
    """
    report = Report()
    answering = {name: data for name, data in reports.items() if data.get("node")}
    for name, data in reports.items():
        report.nodes[name] = (
            node_checks(data, limits[name])
            if name in answering
            else [
                Check(
                    "reachable",
                    str(data.get("error") or "no answer"),
                    FAIL,
                    "Check its power and its management cable; a node that answers pings but not SSH is out of memory: "
                    "power it off and on.",
                )
            ]
        )
    report.cluster = cluster_checks(answering, limits, len(reports))
    return report


def node_checks(data: Mapping[str, Any], limits: Limits) -> list[Check]:
    """Return the checks of one node that answers."""
    node = data["node"]
    return [
        *_system_checks(node, limits),
        *_memory_checks(node, limits),
        *_disk_checks(node, limits),
        *_service_checks(node),
        *engine_checks(node, limits),
        *_clock_checks(node, data.get("skew"), limits),
        *_fabric_checks(data, limits),
        *_port_checks(data, limits),
    ]


_KHO = "CmaFree exceeds CmaTotal: boot with kho=off (GRUB_CMDLINE_LINUX, update-grub, reboot)."


def _system_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    system = node["os"]
    dgx = f", DGX OS {system['dgx']}" if system["dgx"] else ""
    return [
        Check("system", f"{system['name']}{dgx}"),
        judged("kernel", f"{system['kernel']} {system['arch']}", _KHO if node["kho_fault"] else "", FAIL),
        *gpu_checks(node, limits),
    ]


def _memory_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    memory = node["memory_gib"]
    serving = bool(node["engines"])
    least = limits.memory_available_gib
    shown = f"{memory['available']:.1f} of {memory['total']:.1f} GiB available, {least:g} required"
    remedy = ""
    if memory["available"] < least:
        remedy = (
            "Lower the model's memory budget: a node without memory stops answering."
            if serving
            else "Nothing serves here, and yet the memory is in use: see `ps -eo rss,comm --sort -rss`."
        )
    checks = [judged("memory", shown, remedy, WARN if serving else FAIL)]
    if memory["swap_total"]:
        checks.append(
            Check("swap", f"{memory['swap_total'] - memory['swap_free']:.1f} of {memory['swap_total']:.1f} GiB used")
        )
    desktop = node["desktop"]
    if desktop["unit"]:
        checks.append(
            Check(
                "desktop",
                f"{desktop['unit']} holds {desktop['rss_gib']:.1f} GiB",
                WARN,
                "Run playbooks/provision.yml, or: systemctl set-default multi-user.target; systemctl isolate it.",
            )
        )
    guard = node.get("protection", {})
    if guard.get("systemd_oomd"):
        checks.append(
            Check(
                "systemd-oomd",
                "running",
                WARN,
                "It kills complete containers, and earlyoom is there already: systemctl disable --now systemd-oomd.",
            )
        )
    if limits.earlyoom and not guard.get("earlyoom"):
        checks.append(Check("earlyoom", "not running", FAIL, "Run playbooks/provision.yml."))
    elif guard.get("earlyoom"):
        checks.append(Check("earlyoom", "running"))
    if guard:
        score = guard["sshd_oom_score_adjust"]
        remedy = "Run playbooks/provision.yml; without it the kernel may kill the SSH sessions first."
        shown = f"OOM score adjustment {score}"
        checks.append(judged("sshd under memory pressure", shown, "" if score <= -900 else remedy))
        if limits.sysctl and guard["swappiness"] > 1:
            checks.append(Check("vm.swappiness", str(guard["swappiness"]), WARN, "Run playbooks/provision.yml."))
    return checks


def _disk_checks(node: Mapping[str, Any], limits: Limits) -> list[Check]:
    by_mount: dict[str, Mapping[str, Any]] = {disk["mount"]: disk for disk in node["disks"].values()}
    checks = []
    for mount, disk in sorted(by_mount.items()):
        shown, remedy = f"{disk['free_gib']:.0f} of {disk['size_gib']:.0f} GiB free", ""
        if limits.disk_free_gib and disk["free_gib"] < limits.disk_free_gib:
            remedy = "Remove weights and images that no model of yours uses (never prune -a)."
        level = FAIL if disk["free_gib"] < limits.disk_free_gib / 5 else WARN
        checks.append(judged(f"disk {mount}", shown, remedy, level))
    return checks


def _service_checks(node: Mapping[str, Any]) -> list[Check]:
    docker = node["docker"]
    version = node.get("docker_version", "")
    target = node["systemd"]["default_target"]
    checks = [
        Check("Docker", f"{version or 'running'} at {docker['data_root']}")
        if docker["active"]
        else Check("Docker", "not running", FAIL, "systemctl status docker; playbooks/provision.yml sets it up."),
        judged("boots into", target, "" if target == "multi-user.target" else "Run playbooks/provision.yml."),
    ]
    if held := node.get("updates_held"):
        checks.append(
            Check("updates", f"unattended ones leave out {', '.join(held)}: install them by hand when nothing serves")
        )
    failed = node["systemd"]["failed"]
    if failed:
        checks.append(Check("failed units", ", ".join(failed), WARN, f"systemctl status {failed[0]}"))
    return checks


def _clock_checks(node: Mapping[str, Any], skew: Mapping[str, Any] | None, limits: Limits) -> list[Check]:
    checks = []
    clock = node["time"]
    if limits.time_sync:
        good = bool(clock["service"]) and clock["synchronized"]
        shown = f"{clock['service'] or 'none'}, {'synchronised' if clock['synchronized'] else 'not synchronised'}"
        remedy = "playbooks/provision.yml installs one; `chronyc sources` or `timedatectl` show what is missing."
        checks.append(judged("time service", shown, "" if good else remedy))
    if skew and skew.get("skew_s") is not None:
        seconds, error = float(skew["skew_s"]), float(skew.get("error_s") or 0.0)
        # Within the error of the measurement the clock counts as right.
        apart = bool(limits.clock_skew_s) and abs(seconds) - error > limits.clock_skew_s
        shown = f"{seconds:+.3f} s from the control node (±{error:.3f})"
        checks.append(judged("clock", shown, "Let the time service set it: `chronyc makestep`." if apart else "", FAIL))
    return checks


def _fabric_checks(data: Mapping[str, Any], limits: Limits) -> list[Check]:
    facts = data.get("fabric")
    if not facts:
        return []
    machine = from_dict(facts["machine"])
    found = findings(machine, mtu_bytes=0, speed_mbps=limits.speed_mbps, rdma=limits.rdma)
    checks = []
    for netdev in machine.netdevs:
        if not (netdev.carrier or netdev.addresses):
            continue
        own = [(each.level, each.sentence()) for each in found if netdev.name in each.what]
        if limits.mtu_bytes and netdev.carrier and netdev.addresses and netdev.mtu_bytes != limits.mtu_bytes:
            own.append((WARN, mtu_remedy(netdev.mtu_bytes, limits.mtu_bytes)))
        own += nic_level(netdev.hca.firmware if netdev.hca else "")
        worst = max((level for level, _sentence in own), key=lambda each: RANK[each], default=OK)
        parts = [
            f"{netdev.speed_mbps // 1000} Gb/s" if netdev.speed_mbps else "",
            f"MTU {netdev.mtu_bytes}",
            " ".join(netdev.addresses) or "no address",
            "" if netdev.carrier else "no carrier",
            f"{netdev.hca.name} {netdev.hca.state}" if netdev.hca else "",
            f"firmware {netdev.hca.firmware}" if netdev.hca and netdev.hca.firmware else "",
        ]
        checks.append(
            Check(
                f"port {netdev.name}",
                ", ".join(filter(None, parts)),
                worst,
                " ".join(sentence for _level, sentence in own),
            )
        )
    rest = [each for each in found if not any(netdev.name in each.what for netdev in machine.netdevs if netdev.carrier)]
    checks += [Check("fabric", each.what, each.level, each.remedy) for each in rest]
    return checks


def _port_checks(data: Mapping[str, Any], limits: Limits) -> list[Check]:
    node = data["node"]
    if "listeners" not in node:
        return []
    fabric = set()
    if data.get("fabric"):
        fabric = {address for netdev in from_dict(data["fabric"]["machine"]).netdevs for address in netdev.ipv4()}
    beyond = [
        each for each in node["listeners"] if each["port"] not in limits.open_ports and each["address"] not in fabric
    ]
    # Ray and the ranks' rendezvous bind to every address, and pick most of their ports themselves.
    serving = {unit.removesuffix(".service") for unit in node["engines"]}
    engine = [each for each in beyond if each.get("container") and each["container"] in serving]
    other = [each for each in beyond if each not in engine]
    shown = ", ".join(
        f"{each['address']}:{each['port']}" + (f" ({each['process']})" if each["process"] else "") for each in other
    )
    own = f", and {len(engine)} port(s) of the engine itself" if engine else ""
    if not other:
        return [Check("open beyond the fabric", f"only {', '.join(map(str, limits.open_ports))}{own}")]
    remedy = "Nothing of this collection listens there; end it, or bind it to the fabric or the loopback."
    return [Check("open beyond the fabric", shown + own, WARN, remedy)]


def cluster_checks(
    reports: Mapping[str, Mapping[str, Any]], limits: Mapping[str, Limits], expected: int
) -> list[Check]:
    """Return the checks that take several nodes: reachability over the fabric, and parity line by line."""
    remedy = "" if len(reports) == expected else "See the tables of those that do not."
    checks = [judged("nodes", f"{len(reports)} of {expected} answer", remedy, FAIL)]
    pings = {name: data["ping"] for name, data in reports.items() if data.get("ping")}
    if len(pings) > 1:
        checks += _reachability(pings, max((limits[name].mtu_bytes for name in pings), default=0))
    checks += throughput_state(reports)
    slow = [sentence for data in reports.values() for sentence in data.get("slow") or ()]
    checks += [
        Check("throughput", sentence, WARN if "could not be measured" in sentence else FAIL)
        for sentence in sorted(set(slow))
    ]
    if len(reports) > 1:
        checks += parity(reports)
    return checks


def _reachability(pings: Mapping[str, Mapping[str, Any]], mtu_bytes: int) -> list[Check]:
    """Return who does not reach whom; an MTU that is too small, but the same everywhere, only costs throughput."""
    problems, size = verdict(pings, mtu_bytes), common_mtu(pings, mtu_bytes)
    faults = [Check("fabric", problem, FAIL) for problem in problems]
    if size:
        small = Check("fabric", f"every node uses an MTU of {size} bytes", WARN, mtu_remedy(size, mtu_bytes))
        return [small, *faults]
    return faults or [Check("fabric", f"every node reaches every other with {mtu_bytes} bytes unfragmented")]


def _fabric_summary(data: Mapping[str, Any]) -> str:
    facts, ping = data.get("fabric"), data.get("ping")
    if not facts or not ping:
        return ""
    netdev = carries(from_dict(facts["machine"]), ping["address"])
    if netdev is None:
        return "no address"
    speed = f", {netdev.speed_mbps // 1000} Gb/s" if netdev.speed_mbps else ""
    firmware = f", firmware {netdev.hca.firmware}" if netdev.hca else ""
    return f"MTU {netdev.mtu_bytes}{speed}{firmware}"


#: Name, level of a difference, what to compare, what to do about it.
_PARITY: Sequence[tuple[str, str, Callable[[Mapping[str, Any]], str], str]] = (
    ("system", WARN, lambda data: str(data["node"]["os"]["name"]), "Bring all nodes to the same release."),
    ("DGX OS", WARN, lambda data: str(data["node"]["os"]["dgx"]), "Bring all nodes to the same release."),
    ("kernel", FAIL, lambda data: str(data["node"]["os"]["kernel"]), "Boot the same kernel on all nodes."),
    ("GPU driver", FAIL, lambda data: str(data["node"]["gpu"]["driver"]), "Install the same driver on all nodes."),
    ("firmware", WARN, lambda data: str(data["node"].get("bios", "")), "Update the firmware (fwupdmgr)."),
    ("Docker", WARN, lambda data: str(data["node"].get("docker_version", "")), "Install the same version."),
    ("Python", WARN, lambda data: str(data["node"]["os"]["python"]), "Install the same version."),
    (
        "memory",
        WARN,
        lambda data: f"{data['node']['memory_gib']['total']:.0f} GiB",
        "The smallest node sets the budget.",
    ),
    ("fabric port", WARN, _fabric_summary, "Bring all ports to the same settings and firmware."),
)


def parity(reports: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Return a line for each property that must be the same on all nodes, with who differs."""
    checks = []
    for name, level, read, remedy in _PARITY:
        values = {node: read(data) for node, data in reports.items()}
        if any(values.values()):
            checks.append(_same(f"same {name}", values, level, remedy))
    tags = sorted({tag for data in reports.values() for tag in data["node"].get("images", {})})
    for tag in tags:
        values = {node: data["node"].get("images", {}).get(tag, "absent")[:19] for node, data in reports.items()}
        present = {node: value for node, value in values.items() if value != "absent"}
        if len(set(present.values())) > 1:
            checks.append(_same(f"image {tag}", values, FAIL, "Run playbooks/image.yml: one tag must be one image."))
        elif len(present) == len(values):
            checks.append(Check(f"image {tag}", next(iter(present.values()))))
    return checks


def _same(name: str, values: Mapping[str, str], level: str, remedy: str) -> Check:
    by_value: dict[str, list[str]] = {}
    for node, value in values.items():
        by_value.setdefault(value or "none", []).append(node)
    if len(by_value) == 1:
        return Check(name, next(iter(by_value)))
    shown = "; ".join(
        f"{value}: {', '.join(nodes)}" for value, nodes in sorted(by_value.items(), key=lambda it: -len(it[1]))
    )
    return Check(name, shown, level, remedy)


def tables(report: Report, width: int = 100) -> list[str]:
    """Return the report as lines: a table per node and one for the cluster, remedies below what they are for."""
    lines = []
    named: list[tuple[str, list[Check]]] = [*report.nodes.items(), ("cluster", report.cluster)]
    for title, checks in named:
        column = max((len(check.name) for check in checks), default=0)
        lines += ["", f"== {title} ".ljust(width, "=")]
        for check in checks:
            lines += _wrapped(f"{check.level:<4}  {check.name:<{column}}  ", check.value, width)
            if check.remedy and check.level != OK:
                lines += _wrapped(" " * (column + 8) + "-> ", check.remedy, width)
    counts = report.counts()
    lines += ["", f"{report.level}: {counts[OK]} OK, {counts[WARN]} WARN, {counts[FAIL]} FAIL"]
    return lines


def _wrapped(lead: str, text: str, width: int) -> list[str]:
    lines, line = [], lead
    for word in text.split():
        if len(line) + len(word) + 1 > width and line.strip() != lead.strip():
            lines.append(line.rstrip())
            line = " " * len(lead)
        line += word if line.endswith(" ") and len(line) <= len(lead) else f" {word}"
    return [*lines, line.rstrip()]
