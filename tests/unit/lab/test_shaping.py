# SPDX-License-Identifier: Apache-2.0
"""Rates of links, and the commands that set them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.plan import Net
from lab.shaping import HostLink, Rates, burst_bytes, decide_rates, format_rate, host_script, parse_rate, qdisc_command

DEFAULT = Rates(50_000_000, 10_000_000_000)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("50mbit", 50_000_000),
        ("10gbit", 10_000_000_000),
        ("2.5Gbit", 2_500_000_000),
        ("640 kbit/s", 640_000),
        ("1000001bit", 1_000_000),
    ],
)
def test_rates_are_read_in_whole_bytes_a_second(text: str, bits: int) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["", "fast", "10", "-1gbit", "0gbit", "10 GB/s", "1000bps", "63kbit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="not a rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("bits", "text"),
    [(None, "unshaped"), (10_000_000_000, "10 Gbit/s"), (50_000_000, "50 Mbit/s"), (64_000, "64 kbit/s")],
)
def test_rates_are_shown(bits: int | None, text: str) -> None:
    assert format_rate(bits) == text


@pytest.mark.parametrize(
    ("fabric", "mgmt", "expected"),
    [
        ("4gbit", None, Rates(20_000_000, 4_000_000_000)),
        (None, "20mbit", Rates(20_000_000, 4_000_000_000)),
        ("4gbit", "1gbit", Rates(1_000_000_000, 4_000_000_000)),
        (None, None, DEFAULT),
    ],
)
def test_one_rate_sets_the_other_one_to_two_hundred(fabric: str | None, mgmt: str | None, expected: Rates) -> None:
    assert decide_rates(fabric, mgmt, unshaped=False, before=None, default=DEFAULT) == expected


def test_a_lab_keeps_its_rates_until_told_otherwise() -> None:
    before = Rates(None, None)
    assert decide_rates(None, None, unshaped=False, before=before, default=DEFAULT) is before
    assert decide_rates(None, None, unshaped=True, before=DEFAULT, default=DEFAULT) == before


def test_unshaped_contradicts_a_rate() -> None:
    with pytest.raises(LabError, match="contradict"):
        decide_rates("4gbit", None, unshaped=True, before=None, default=DEFAULT)


@pytest.mark.parametrize("bits", [64_000, 50_000_000, 10_000_000_000])
def test_a_bucket_holds_a_timer_tick_and_a_whole_segment(bits: int) -> None:
    assert burst_bytes(bits) >= bits / 8 / 250
    assert burst_bytes(bits) >= 65536


def test_the_commands_of_one_device() -> None:
    assert qdisc_command("eth1", "fabric", 10_000_000_000) == (
        "tc qdisc replace dev eth1 root tbf rate 10000000000bit burst 5000000b latency 10ms"
    )
    assert qdisc_command("eth0", "mgmt", None) == "tc qdisc del dev eth0 root 2>/dev/null || true"


def _run_host_script(tmp_path: Path, links: list[HostLink]) -> subprocess.CompletedProcess[str]:
    """Run the script with tc and ip that write down their arguments, and a made-up /sys."""
    for index, device in ((7, "vethA"), (17, "vethB"), (71, "vethC")):
        (tmp_path / "net" / device).mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / device / "ifindex").write_text(f"{index}\n", encoding="ascii")
    for program in ("tc", "ip"):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\necho {program} "$@"\n', encoding="ascii")
        path.chmod(0o755)
    script = host_script(links).replace("/sys/class/net/", f"{tmp_path}/net/")
    field = len((tmp_path / "net").parts) + 1
    script = script.replace("cut -d/ -f5", f"cut -d/ -f{field}")
    return subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("net", "queue"), [("mgmt", "50ms"), ("fabric", "10ms")])
def test_the_hosts_script_finds_each_end_by_its_index(tmp_path: Path, net: Net, queue: str) -> None:
    done = _run_host_script(tmp_path, [HostLink(7, net, 8_000_000, cut=False), HostLink(71, net, 8_000_000, cut=True)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"tc qdisc replace dev vethA root tbf rate 8000000bit burst 131072b latency {queue}",
        "ip link set dev vethA up",
        f"tc qdisc replace dev vethC root tbf rate 8000000bit burst 131072b latency {queue}",
        "ip link set dev vethC down",
    ]


def test_the_hosts_script_stops_at_an_end_that_is_gone(tmp_path: Path) -> None:
    done = _run_host_script(tmp_path, [HostLink(1, "mgmt", None, cut=False), HostLink(7, "mgmt", None, cut=False)])
    assert done.returncode != 0
    assert "no interface with index 1" in done.stderr
    assert "vethA" not in done.stdout
