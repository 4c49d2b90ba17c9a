# SPDX-License-Identifier: Apache-2.0
"""Record why an engine's unit ended, on its own node: the unit's last ExecStopPost.

Reads what systemd and the log of this run say of the end, and writes one JSON file that outlives the journal's rotation
and a reboot.  A stop that was requested writes nothing.  Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.command import run
from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import relevant

OWN = re.compile(
    r"^gb10: ((?:start refused|stopped|gave up|missing environment|restarting with the others|only \d+ of): ?.*)"
)
OWN_LAST = re.compile(r"^gb10: (the engine exited unexpectedly: .*)")
EXCEPTION = re.compile(r"(?:^|\] |\) )((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): .+)$")
#: What an exception like these has as its cause stands in another line.
ECHO = re.compile(r"EngineDeadError|ActorDiedError|EngineCore encountered an issue")
DIED = re.compile(r"((?:Worker proc|RayWorkerProc|Engine core proc\w*) \S+ died unexpectedly[^,]*)")
RAY_DIED = re.compile(r"ERR \S+ -- (\w+ \[exit code=-?\d+\])$")
DOCKER = re.compile(r"^(?:/usr/bin/)?docker: (.+)")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b|(?<=['\"]api_key['\"]: )(?:\[[^\]]*\]|'[^']*'|\"[^\"]*\")")
RECORDED_LINES = 15
MAX_CHARS = 500


def reason_of(lines: Sequence[str], result: str, code: str, status: str) -> str:
    """Return why a run ended, in one sentence: what this project's programs said, the first exception, or systemd.

    :param lines: the log of the run, oldest first.
    :param result: systemd's SERVICE_RESULT; code, status: its EXIT_CODE and EXIT_STATUS.
    """
    for line in reversed(lines):
        own = OWN.match(line)
        if own:
            return own.group(1)
    able = relevant(lines)
    causes = [line for line in able if not ECHO.search(line)]
    for pattern, among, words in (
        (EXCEPTION, causes, "{}"),
        (DIED, lines, "{}"),
        (RAY_DIED, lines, "Ray's {} ended"),
        (EXCEPTION, able, "{}"),
        (DOCKER, lines, "{}"),
    ):
        found = next(filter(None, map(pattern.search, among)), None)
        if found:
            return words.format(found.group(1))
    for line in reversed(lines):
        own = OWN_LAST.match(line)
        if own:
            return own.group(1)
    if status in ("137", "KILL", "9"):
        return "the container was killed with SIGKILL, and its log does not say why"
    if status == "125":
        return "docker run lost the Docker Engine, or could not start the container (status 125)"
    return f"systemd: {result}, {code or 'no process'} {status}".strip()


def record_of(
    launch: dict[str, Any], lines: Sequence[str], environment: dict[str, str], now_s: float
) -> dict[str, Any]:
    """Return what is recorded of a failure."""
    shown = [SECRET.sub("********", line)[:MAX_CHARS] for line in lines]
    result, code, status = (environment.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)),
        "epoch_s": round(now_s, 1),
        "model": launch["model"],
        "unit": launch["unit"],
        "rank": launch["rank"],
        "reason": reason_of(shown, result, code, status),
        "result": result,
        "exit_code": code,
        "exit_status": status,
        "log": shown[-RECORDED_LINES:],
    }


def with_before(record: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a unit that gave up together with the failure that made it so."""
    if record["reason"].startswith("gave up") and before.get("model") == record["model"]:
        return {**record, "before": {key: before.get(key) for key in ("time", "reason", "log")}}
    return record


def requested(unit: str) -> bool:
    """Return whether systemd is stopping the unit because somebody, or a shutdown, asked for it.

    The container then ends with status 143, or 137 when it was too slow, which systemd itself counts as a failure.
    """
    _status, out, _problem = run(["systemctl", "list-jobs", "--plain", "--no-legend"], 20.0)
    jobs = (line.split() for line in out.splitlines())
    return any(len(job) > 2 and job[1] == unit and job[2] in ("stop", "restart") for job in jobs)


def log_of(invocation: str) -> list[str]:
    """Return the newest lines of one run's log, oldest first; one line that says why when the journal gives none."""
    run(["journalctl", "--sync"], 20.0)
    status, out, problem = run(
        ["journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=1000", f"_SYSTEMD_INVOCATION_ID={invocation}"],
    )
    if status and not out:
        return [f"the journal does not answer: {problem.strip()}"]
    # What the unit's own `docker rm` says of a container that is gone already.
    return [line for line in out.splitlines() if not line.startswith("Error: No such container")]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path, help="launch description of this rank, JSON")
    given = parser.parse_args(argv)
    if os.environ.get("SERVICE_RESULT", "success") == "success":
        return
    launch = json.loads(given.launch.read_text(encoding="utf-8"))
    if requested(launch["unit"]):
        return
    target = Path(launch["last_failure"])
    lines = log_of(os.environ.get("INVOCATION_ID", ""))
    record = with_before(record_of(launch, lines, dict(os.environ), time.time()), files.read_json(target))
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_json(target, record, 0o600)
    except OSError as error:
        print(f"gb10: the reason could not be recorded in {target}: {error}", flush=True)
    print(f"gb10: this run ended: {record['reason']}", flush=True)
