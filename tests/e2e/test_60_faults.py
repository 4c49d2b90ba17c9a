# SPDX-License-Identifier: Apache-2.0
"""Every fault on the stand-in engine: what the probe says within how many seconds, and what serves again.

It has a lab of its own, `faults`, of three nodes, prepared by the playbooks of molecule/engine. What is measured goes
to .lab/runs/faults.json; docs/decisions/faults.md shows it. While writing tests, keep the lab with `--reuse-lab`.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.plan import container_name
from tests.e2e.faults import keep, kill_at, watched
from tests.e2e.harness import REPO
from tests.e2e.standin import (
    LAB,
    NODES,
    lab,
    on,
    play,
    play_command,
    play_environment,
    prepared,
    tokens,
    until,
)

pytestmark = pytest.mark.soak

#: tests/e2e/conftest.py makes no lab of four for a run of modules that have one of their own.
OWN_LAB = True
FIGURES = REPO / ".lab" / "runs" / "faults.json"
UNIT = "vllm-stand-native"
#: engine_silence_seconds of molecule/engine/vars/main.yml, and what the restart adds to it.
SILENCE_S = 10.0


def restarts() -> list[int]:
    """Return how often systemd has restarted each rank."""
    return [int(on(node, f"systemctl show --property=NRestarts --value {UNIT}")) for node in NODES]


def reason(node: int) -> dict[str, Any]:
    """Return the last failure that a node has kept."""
    found: dict[str, Any] = json.loads(on(node, "cat /var/lib/gb10/engine/last_failure.json"))
    return found


def look(folder: Path, extra: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Let the probe look once from the controller; return its state and its sentence."""
    into = folder / "look.json"
    into.unlink(missing_ok=True)
    done = subprocess.run(
        play_command("look", into=str(into), which="native", **(extra or {})),
        cwd=REPO,
        env=play_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if not into.exists():
        return "none", done.stdout[-300:]
    told = json.loads(into.read_text(encoding="utf-8"))
    return str(told["state"]), str(told["summary"])


note = partial(keep, FIGURES)


@pytest.fixture(scope="module", autouse=True)
def lab_of_three(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring up the lab with the stand-in's image and weights on it."""
    yield from prepared(request.config)


@pytest.fixture
def served() -> Iterator[None]:
    """Give three ranks that serve, and find them serving again at the end of the test."""
    if not (tokens() and UNIT in on(1, "docker ps --format '{{.Names}}'")):
        play("change", which="native")
    until("served before the fault", tokens)
    # Too many faults in an hour would make the units give up, as they should.
    for node in NODES:
        on(node, "rm -f /run/gb10/engine/stand-native.starts")
    yield
    until("served after the test", tokens)
    for node in NODES:
        assert on(node, "docker ps --all --format '{{.Names}}'").split() == [UNIT]


#: The engine's own process is the child of the container's second process: init, gb10 entry, vllm.
KILL_ENGINE = (
    "top=$(docker inspect --format '{{.State.Pid}}' " + UNIT + "); entry=$(cat /proc/$top/task/$top/children); "
    "entry=${entry%% *}; engine=$(cat /proc/$entry/task/$entry/children); kill -9 ${engine%% *}"
)
KILL_DOCKERD = "kill -9 $(systemctl show --property=MainPID --value docker)"


@pytest.mark.parametrize(
    ("fault", "node", "script", "why"),
    [
        ("kill -9 of the head's engine", 1, KILL_ENGINE, "killed by signal 9"),
        ("kill -9 of a worker's engine", 2, KILL_ENGINE, "killed by signal 9"),
        ("kill -9 of a worker's container", 3, f"docker kill {UNIT}", "SIGKILL"),
        ("kill -9 of the head's container", 1, f"docker kill {UNIT}", "SIGKILL"),
        (
            "kill -9 of docker run on a worker",
            2,
            f"kill -9 $(systemctl show --property=MainPID --value {UNIT})",
            "systemd: signal|SIGKILL",
        ),
        ("kill -9 of dockerd on a worker", 2, KILL_DOCKERD, "lost the Docker Engine"),
        ("kill -9 of dockerd on the head", 1, KILL_DOCKERD, "lost the Docker Engine"),
    ],
)
@pytest.mark.usefixtures("served")
def test_a_kill_restarts_all_ranks_and_its_reason_is_kept(
    tmp_path: Path, fault: str, node: int, script: str, why: str
) -> None:
    before = restarts()
    with watched(partial(look, tmp_path)) as watch:
        on(node, script)
        until("the restart of every rank", lambda: all(a > b for a, b in zip(restarts(), before, strict=True)))
        until("served again", tokens)
        again = time.monotonic() - watch.since
        until("the probe sees it", lambda: watch.seen and watch.seen[-1][1] == "ready" and watch.seen[-1][0] > again)
    note(fault, watch, again=again, reason=reason(node)["reason"])

    assert re.search(why, reason(node)["reason"]), reason(node)
    # A Docker Engine that comes back may end its containers with SIGTERM: a stop on request, which keeps no reason.
    others = [reason(other)["reason"] for other in NODES if other != node and "dockerd" not in fault]
    assert all("restarting with the others: rank" in each for each in others), others
    assert [after - was for after, was in zip(restarts(), before, strict=True)] == [1, 1, 1]


@pytest.mark.parametrize("node", [3, 1], ids=["worker", "head"])
@pytest.mark.usefixtures("served")
def test_a_node_without_power_stops_all_and_its_boot_serves_again(tmp_path: Path, node: int) -> None:
    with watched(partial(look, tmp_path)) as watch:
        lab("kill", str(node))
        until("the probe says so", lambda: watch.first("dead", "degraded")[1] or watch.first("starting")[1])
        rest = [other for other in NODES if other != node]
        until("the others let go", lambda: all("ranks gathered" in tail(n) or "waiting for" in tail(n) for n in rest))
        let_go = time.monotonic() - watch.since
        assert tokens() == 0
        booted = time.monotonic()
        lab("boot", str(node))
        until("served again", tokens)
        again = time.monotonic() - booted
    note(f"power-off of {'a worker' if node > 1 else 'the head'}", watch, let_go=let_go, again_after_boot=again)


def tail(node: int) -> str:
    """Return the newest lines of a rank's log."""
    return on(node, f"journalctl --unit={UNIT} --output=cat --lines=3")


@pytest.mark.usefixtures("served")
def test_all_nodes_without_power_serve_again_whatever_the_order_of_their_boots() -> None:
    for node in NODES:
        lab("kill", str(node))
    for node in (3, 2):
        lab("boot", str(node))
    time.sleep(5)
    assert tokens() == 0
    start = time.monotonic()
    lab("boot", "1")
    until("served again", tokens)
    note("power-off of all, boot of workers first", None, again_after_boot=time.monotonic() - start)


@pytest.mark.usefixtures("served")
def test_a_cut_of_five_seconds_is_survived(tmp_path: Path) -> None:
    before = restarts()
    with watched(partial(look, tmp_path)) as watch:
        lab("cut", "3", "--net", "fabric")
        time.sleep(5)
        lab("heal", "3", "--net", "fabric")
        time.sleep(SILENCE_S + 5)
    note("cut of the fabric for 5 s", watch, restarts=[a - b for a, b in zip(restarts(), before, strict=True)])
    until("three tokens", lambda: tokens() == 3)
    assert restarts() == before


@pytest.mark.usefixtures("served")
def test_a_lasting_cut_is_named_and_heals_with_the_cable(tmp_path: Path) -> None:
    with watched(partial(look, tmp_path)) as watch:
        lab("cut", "3", "--net", "fabric")
        until(
            "the cut rank names the cable", lambda: "has no carrier" in on(3, f"journalctl --unit={UNIT} -n 20 -o cat")
        )
        until("the head waits", lambda: "waiting for rank 2, gx10-3" in tail(1))
        waits = time.monotonic() - watch.since
        until("the probe says so", lambda: watch.first("dead", "degraded")[1])
        # Refused starts cost nothing: the unit still tries after more of them than restarts are allowed.
        time.sleep(25)
        kept = reason(3)["reason"]
        healed = time.monotonic()
        lab("heal", "3", "--net", "fabric")
        until("served again", tokens)
        again = time.monotonic() - healed
    note("cut of the fabric for good", watch, waits=waits, again_after_heal=again, reason=kept)
    assert "has no carrier; check the cable" in kept


@pytest.mark.usefixtures("served")
def test_a_full_log_volume_stops_nothing(tmp_path: Path) -> None:
    full = (
        "mount -t tmpfs -o size=16m tmpfs /var/log/journal && systemctl restart systemd-journald && "
        "dd if=/dev/zero of=/var/log/journal/filler bs=64k >/dev/null 2>&1; :"
    )
    state = "mkdir -p /var/lib/gb10/engine && mount -t tmpfs -o size=64k tmpfs /var/lib/gb10/engine; "
    state += "dd if=/dev/zero of=/var/lib/gb10/engine/filler bs=4k >/dev/null 2>&1; :"
    on(2, full)
    assert "100%" in on(2, "df /var/log/journal")
    on(2, state)
    try:
        with watched(partial(look, tmp_path)) as watch:
            on(2, KILL_ENGINE)
            until("the head's rank ends", lambda: tokens() == 0)
            until("served again", tokens)
            again = time.monotonic() - watch.since
            looks = len(watch.seen)
            # The first of the two may have begun before.
            until("two looks after that", lambda: len(watch.seen) > looks + 1)
        note("full disk on the log and state volumes of a worker", watch, again=again)
    finally:
        on(2, "umount /var/lib/gb10/engine; umount -l /var/log/journal; systemctl restart systemd-journald")
    assert watch.seen[-1][1] in ("ready", "starting")


CLOCK = "/opt/gb10-clock"
CLOCK_ENVIRONMENT = {"LD_PRELOAD": f"{CLOCK}/clock.so", "GB10_CLOCK": f"{CLOCK}/offset"}
IN_CONTAINER = (
    "s|^  --rm .*|&\\n  --env-file \\\\\\n  " + CLOCK + "/env \\\\\\n  --volume \\\\\\n  " + f"{CLOCK}:{CLOCK}:ro \\\\|"
)


def set_clocks(offset_s: int) -> None:
    """Put the clocks of all nodes so far from the right time, for what runs as for what starts."""
    octal = "".join(f"\\0{byte:o}" for byte in struct.pack("<q", offset_s))
    for node in NODES:
        # Written in place: what runs has mapped it.
        on(node, f"printf '%b' '{octal}' | dd of={CLOCK}/offset conv=notrunc status=none")


def clock_errors_s(node: int) -> dict[str, float]:
    """Return how far from the right time the clocks are of a new program, the engine's container and the journal."""
    read = "python3 -c 'import time; print(time.time())'"
    words = {
        "program": f"env $(cat {CLOCK}/env) {read}",
        "container": f"docker exec {UNIT} {read}",
        "journal": "logger clock; journalctl --sync; journalctl -n 1 -o export -t root | "
        "sed -n 's/^__REALTIME_TIMESTAMP=\\(.*\\)\\(......\\)$/\\1.\\2/p'",
    }
    return {name: round(float(on(node, script)) - time.time(), 1) for name, script in words.items()}


@pytest.fixture
def clocks(tmp_path: Path) -> Iterator[None]:
    """Give all nodes clocks that can be set.

    A node of the lab may not set the kernel's, which is its host's too. So clock.c comes between the C library's clock
    and what reads it: the journal, the programs of the units, what Ansible runs with sudo, and all of the engine's
    container. The Docker Engine alone keeps to the kernel's clock.
    """
    folder = tmp_path / Path(CLOCK).name
    folder.mkdir()
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(folder / "clock.so"), str(source)], check=True)
    words = [f"{name}={value}" for name, value in CLOCK_ENVIRONMENT.items()]
    (folder / "env").write_text("\n".join([*words, ""]), encoding="utf-8")
    (folder / "offset").write_bytes(bytes(8))
    (folder / "sed").write_text(f"{IN_CONTAINER}\n", encoding="utf-8")
    for node in NODES:
        subprocess.run(["docker", "cp", str(folder), f"{container_name(LAB, node)}:/opt/"], check=True)
        on(node, f"echo 'Defaults env_file={CLOCK}/env' > /etc/sudoers.d/gb10-clock")
        on(node, f"systemctl set-environment {' '.join(words)}; systemctl restart systemd-journald")
        on(node, f"sed -i -f {CLOCK}/sed /etc/systemd/system/{UNIT}.service; systemctl daemon-reload")
    for node in NODES:
        on(node, f"systemctl restart {UNIT}")
    until("served with clocks that can be set", tokens)
    yield
    set_clocks(0)
    for node in NODES:
        on(node, f"rm -f /etc/sudoers.d/gb10-clock; systemctl unset-environment {' '.join(CLOCK_ENVIRONMENT)}")
        on(node, "systemctl restart systemd-journald")
    play("change", which="native")
    for node in NODES:
        assert CLOCK not in on(node, f"cat /etc/systemd/system/{UNIT}.service")
        on(node, f"rm -r {CLOCK}")


@pytest.mark.usefixtures("served", "clocks")
def test_a_jump_of_the_clock_changes_nothing_and_hides_no_fault(tmp_path: Path) -> None:
    began = restarts()
    with watched(partial(look, tmp_path)) as watch:
        for offset_s in (3600, 0, -3600):
            set_clocks(offset_s)
            for node in NODES:
                assert clock_errors_s(node) == pytest.approx(
                    dict.fromkeys(("program", "container", "journal"), offset_s), abs=60
                )
            time.sleep(SILENCE_S + 2)
            until("three tokens", lambda: tokens() == 3)
        until("a look after the last jump", lambda: watch.seen)
    note("jumps of all clocks by an hour, forward, back, back again", watch, restarts=restarts())
    assert watch.not_ready()[1] == "", watch.not_ready()
    assert restarts() == began

    # An hour back: all that the engine wrote until now is of the clock's future.
    with watched(partial(look, tmp_path)) as watch:
        on(1, KILL_ENGINE)
        until("the restart of every rank", lambda: all(a > b for a, b in zip(restarts(), began, strict=True)))
        until("served again", tokens)
        again = time.monotonic() - watch.since
        until("the probe sees it", lambda: watch.seen and watch.seen[-1][1] == "ready" and watch.seen[-1][0] > again)
    note("kill -9 of the head's engine, its clock an hour back", watch, again=again, reason=reason(1)["reason"])
    assert "killed by signal 9" in reason(1)["reason"]
    assert watch.first("dead", "degraded", "starting")[1], watch.changes()


@pytest.mark.parametrize(
    ("fail", "state", "words"),
    [
        ("no-tokens", "wedged", "accepts a completion and yields no token"),
        ("wrong-model", "wrong_model", "serves gb10-lab-stand-in/another-model"),
        ("hang-at-load", "starting", "loading weights"),
        ("die-after:1@2", "dead", "was told to die now"),
    ],
)
def test_what_the_probe_says_of_each_way_to_fail(tmp_path: Path, fail: str, state: str, words: str) -> None:
    # As after a reboot: the units are there, and an engine behaves otherwise than when it was proven.
    if UNIT not in on(1, "docker ps --format '{{.Names}}'"):
        play("change", which="native")
    cache = "/var/lib/gb10/cache/*/stand-native/gb10-standin-fail"
    folder = on(1, "ls -d /var/lib/gb10/cache/*/stand-native/ | head -1").strip()
    for node in NODES:
        on(node, f"mkdir -p {folder} && echo {fail} > {folder}/gb10-standin-fail")
    try:
        for node in NODES:
            on(node, f"systemctl restart --no-block {UNIT}")
        time.sleep(2)
        with watched(partial(look, tmp_path)) as watch:
            seen = until(
                "the probe says so", lambda: [told for told in watch.seen if told[1] == state and words in told[2]]
            )
        note(f"stand-in told to {fail}", watch, seen=seen)
    finally:
        for node in NODES:
            on(node, f"rm -f {cache}; rm -f /run/gb10/engine/stand-native.starts; systemctl restart --no-block {UNIT}")
    until("served again", tokens)


@pytest.mark.usefixtures("served")
def test_an_engine_that_always_dies_is_given_up_with_its_reason_and_starts_again_by_hand(tmp_path: Path) -> None:
    folder = on(1, "ls -d /var/lib/gb10/cache/*/stand-native/ | head -1").strip()
    for node in NODES:
        on(node, f"echo die-at-load@0 > {folder}/gb10-standin-fail")
    on(1, KILL_ENGINE)
    start = time.monotonic()
    try:
        until("the head gives up", lambda: "failed" in on(1, f"systemctl is-active {UNIT}", check=False))
        gave_up = time.monotonic() - start
        state, words = look(tmp_path)
        time.sleep(15)
        assert on(1, f"systemctl is-active {UNIT}", check=False).strip() == "failed"
        assert UNIT not in on(1, "docker ps --format '{{.Names}}'")
    finally:
        for node in NODES:
            on(node, f"rm -f {folder}/gb10-standin-fail")
    kept = reason(1)
    note("an engine that always dies", None, gave_up=gave_up, state=state, words=words, reason=kept["reason"])
    assert kept["reason"].startswith("gave up: 5 starts in ")
    assert "was told to die while it loads weights" in json.dumps(kept["before"])
    assert (state, "was told to die while it loads weights" in words) == ("dead", True), words
    for node in NODES:
        on(node, f"systemctl reset-failed {UNIT} 2>/dev/null; systemctl start --no-block {UNIT}")
    until("served again", tokens)


@pytest.mark.usefixtures("served")
def test_degraded_is_said_of_an_engine_whose_parser_fails(tmp_path: Path) -> None:
    start = time.monotonic()
    state, words = look(tmp_path, {"tool_call": "true"})
    note("a parser's canary fails", None, state=state, words=words, seconds=time.monotonic() - start)
    assert (state, "tool_call canary failed" in words) == ("degraded", True), words


STEPS = (
    "Write the unit and the launch description",
    "Write the environment of this rank",
    "Stop the engines on every node",
    "Start the unit of this rank",
    "Verify every rank",
    "Commit the verified model on the head",
    "Commit the verified model on the other nodes",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.usefixtures("served")
def test_a_controller_that_dies_in_a_swap_leaves_what_the_next_run_heals(step: str) -> None:
    kill_at(step, 0.5, play_command("change", which="ray"), play_environment(), REPO)
    start = time.monotonic()
    play("change", which="ray")
    note(f"controller killed at: {step}", None, healed=time.monotonic() - start)
    for node in NODES:
        assert on(node, "docker ps --all --format '{{.Names}}'").split() == ["vllm-stand-ray"]
        assert on(node, f"systemctl is-enabled {UNIT}", check=False).strip() == "disabled"
    play("change", which="native")


def leftovers(node: int) -> dict[str, str]:
    """Return what a swap might leave behind on a node, told by programs that are not ours."""
    return {
        "containers": on(node, "docker ps --all --format '{{.Names}}' | sort"),
        "units": on(node, "ls /etc/systemd/system | grep vllm- | sort; systemctl list-units --all 'vllm-*' --plain "
                    "--no-legend | awk '{print $1, $3}' | sort"),
        "mounts": on(node, "findmnt --raw --noheadings --output TARGET | sed 's#/[0-9a-f]\\{64\\}#/<id>#' | sort"),
        "ports": on(node, "ss -Hltn | awk '{print $4}' | sort"),
        "files": on(node, "find /tmp /run/gb10 /etc/gb10 /var/lib/gb10/engine /usr/local/lib/gb10 "
                    "-not -path '*/systemd-private*' -not -name 'ansible*' -not -name serving | sort"),
        "images": on(node, "docker images --quiet | sort"),
        "volumes": on(node, "docker volume ls --quiet | sort"),
    }  # fmt: skip


@pytest.mark.usefixtures("served")
def test_twenty_swaps_leave_nothing() -> None:
    play("change", which="ray")
    play("change", which="native")
    before = {node: leftovers(node) for node in NODES}
    start = time.monotonic()
    for _round in range(10):
        play("change", which="ray")
        play("change", which="native")
    note("20 swaps", None, seconds=time.monotonic() - start)
    assert {node: leftovers(node) for node in NODES} == before
