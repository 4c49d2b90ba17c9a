# SPDX-License-Identifier: Apache-2.0
"""One look at the engine from its head: is it what it should be, and has that changed?

Started by gb10-watch.timer. It reads this node's rank and asks the API as the collection's health_probe does (the same
files decide), keeps the state, and for a change writes one line of JSON, one line to the journal, and runs the hook.
Standard library only. The API's key is read from the engine's own root-only file, and is never written or shown.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import ProbeHttpError, Reply, Wanted, probe_api
from ansible_collections.gb10.cluster.plugins.module_utils._probe.rank import LogLimits, RankReader, rank_names

COMMAND_S = 30.0
MAX_BODY_BYTES = 8 << 20
#: Priorities of the journal, as systemd reads them from the beginning of a line.
NOTICE, WARNING = "<5>", "<4>"


class LookTooLongError(BaseException):
    """The look was not over in time; not an Exception, so that no handler on the way keeps it."""


class LocalClient:
    """The HTTP of the look: no proxy, a limit on silence, a key that stays in a header."""

    def __init__(self, url: str, api_key: str, silence_s: float, short_s: float = 5.0) -> None:
        self.url = url
        self.silence_s = silence_s
        self.short_s = short_s
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _open(self, path: str, payload: Mapping[str, Any] | None, timeout_s: float) -> Any:
        data = None if payload is None else json.dumps(payload).encode()
        headers = {**self.headers, **({"Content-Type": "application/json"} if data else {})}
        return self.opener.open(urllib.request.Request(self.url + path, data=data, headers=headers), timeout=timeout_s)

    def _ask(self, path: str, payload: Mapping[str, Any] | None, timeout_s: float) -> Reply:
        try:
            with self._open(path, payload, timeout_s) as answer:
                return Reply(int(answer.status), answer.read(MAX_BODY_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as problem:
            return Reply(int(problem.code), problem.read(65536).decode("utf-8", "replace"))
        except (OSError, ValueError) as problem:
            return Reply(0, "", error_word(problem))

    def get(self, path: str) -> Reply:
        """GET a path; never raises."""
        return self._ask(path, None, self.short_s)

    def post(self, path: str, payload: Mapping[str, Any]) -> Reply:
        """POST JSON; never raises."""
        return self._ask(path, payload, self.silence_s)

    def stream(self, path: str, payload: Mapping[str, Any]) -> Iterator[str]:
        """POST JSON and yield lines as they come; raises ProbeHttpError with what went wrong."""
        try:
            with self._open(path, payload, self.silence_s) as answer:
                for raw in answer:
                    yield raw.decode("utf-8", "replace").rstrip("\r\n")
        except urllib.error.HTTPError as problem:
            body = problem.read(65536).decode("utf-8", "replace").strip()
            raise ProbeHttpError(int(problem.code), f"HTTP {problem.code}: {body[:300]}") from problem
        except (OSError, ValueError) as problem:
            word = error_word(problem)
            said = f"no byte for {self.silence_s:.0f} s" if word == "timeout" else word
            raise ProbeHttpError(0, said) from problem


def error_word(problem: BaseException) -> str:
    """Return `refused`, `timeout`, or the client's own words for a request that got no HTTP answer."""
    reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    if isinstance(reason, ConnectionRefusedError):
        return "refused"
    if isinstance(reason, TimeoutError):
        return "timeout"
    return str(reason) or type(reason).__name__


def run(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a command without a shell, in the C locale, and not for ever."""
    try:
        done = subprocess.run(
            list(command),
            check=False,
            capture_output=True,
            timeout=COMMAND_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except FileNotFoundError:
        return 127, "", f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} did not end within {COMMAND_S:.0f} s"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty when it is absent, cut short or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def key_of(environment: str) -> str:
    """Return the API's key from the text of an engine's environment file; empty when it has none."""
    for line in environment.splitlines():
        name, _sign, value = line.partition("=")
        if name == "VLLM_API_KEY":
            return value
    return ""


def look(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return model, state, summary and diagnosis of what the record says is served."""
    members = [str(each) for each in record.get("members", [])]
    if not record.get("model") or not members:
        return {"model": "", "state": probe.ABSENT, "summary": "Nothing is to be served.", "diagnosis": []}
    model = str(record["model"])
    try:
        api_key = key_of((Path(config["engine_dir"]) / f"{model}.env").read_text(encoding="utf-8"))
    except OSError:
        api_key = ""
    names = rank_names({**record, "name": model, "node": members[0]}, members[0])
    rank = RankReader(run, names, LogLimits(shown_lines=0)).report()
    url = f"http://127.0.0.1:{record.get('api_port', 8000)}"
    client = LocalClient(url, api_key, float(config["silence_s"]))
    wanted = Wanted(
        served_name=str(record.get("served_name", "")),
        canary=bool(config["canary"]),
        canary_tokens=int(config["canary_tokens"]),
        metrics=False,
    )
    # With the rank down a completion would only wait for nothing.
    api = probe_api(client, url, wanted, canaries=rank["state"] == probe.RUNNING)
    expected = {"served_name": wanted.served_name, "canary": wanted.canary}
    state = probe.merge([rank], api, head=members[0], expected=expected)
    return {
        "model": model,
        "state": state.state,
        "summary": state.summary,
        "diagnosis": [{"name": each.name, "cause": each.cause, "cure": each.cure} for each in state.diagnosis],
    }


def in_time(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Look, but not longer than is allowed: what answers so slowly is wedged."""

    def end(_signal: int, _frame: object) -> None:
        raise LookTooLongError

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, float(config["look_s"]))
    try:
        return look(config, record)
    except LookTooLongError:
        said = f"The look was not over within {config['look_s']} s: the engine, or this node, answers too slowly."
        cause = {"name": "look_too_long", "cause": said, "cure": "Look at the node's load, and at the engine's log."}
        return {"model": str(record.get("model", "")), "state": probe.WEDGED, "summary": said, "diagnosis": [cause]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def append(path: Path, entry: Mapping[str, Any], max_bytes: int, keep: int) -> None:
    """Append one line; a file that has become too long is put aside first, and the oldest of those forgotten."""
    if path.exists() and path.stat().st_size >= max_bytes:
        for number in range(keep - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
    line = (json.dumps(entry, sort_keys=True) + "\n").encode()
    with path.open("ab") as stream:
        # A line that a power cut left without its end must not swallow the next one.
        if stream.tell():
            with path.open("rb") as there:
                there.seek(-1, os.SEEK_END)
                line = line if there.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def run_hook(hook: Sequence[str], entry: Mapping[str, Any], timeout_s: float) -> str:
    """Run the hook with the transition in its environment and on its input; return what went wrong, or nothing."""
    if not hook:
        return ""
    told = {f"GB10_{name.upper()}": str(entry[name]) for name in ("state", "before", "model", "summary", "time")}
    try:
        done = subprocess.run(
            list(hook),
            check=False,
            input=json.dumps(entry).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout_s,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **told},
        )
    except OSError as error:
        return f"{hook[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{hook[0]} did not end within {timeout_s:.0f} s and was killed"
    said = done.stderr.decode("utf-8", "replace").strip()
    return f"{hook[0]} ended with {done.returncode}: {said[-300:]}" if done.returncode else ""


def note(config: Mapping[str, Any], found: Mapping[str, Any], now_s: float) -> dict[str, Any] | None:
    """Keep what was found; return the transition when it is one.

    The log is written before the state: a power cut in between may tell a transition twice, but loses none.
    """
    directory = Path(config["state_dir"])
    before = read_object(directory / "state.json")
    entry = None
    # A clock that was put back makes what was before the present's future.
    began = since = min(float(before.get("since", now_s)), now_s)
    if (before.get("state"), before.get("model")) != (found["state"], found["model"]):
        since = now_s
        entry = {
            "time": now_s,
            "before": str(before.get("state", "")),
            "before_model": str(before.get("model", "")),
            "before_seconds": round(now_s - began, 1),
            **found,
        }
        append(directory / "transitions.jsonl", entry, int(config["log_max_bytes"]), int(config["log_keep"]))
    state = {**found, "since": since, "looked": now_s}
    write_whole(directory / "state.json", json.dumps(state, indent=2, sort_keys=True) + "\n")
    return entry


def main() -> None:
    """Look once."""
    config = read_object(Path(sys.argv[1]))
    directory = Path(config["state_dir"])
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another look is going on", flush=True)
            return
        found = in_time(config, read_object(Path(config["record"])))
        entry = note(config, found, round(time.time(), 3))
        if entry is None:
            return
        level = NOTICE if found["state"] in (probe.READY, probe.STARTING, probe.ABSENT) else WARNING
        name = found["model"] or entry["before_model"] or "the engine"
        was = f", was {entry['before']} for {entry['before_seconds']:.0f} s" if entry["before"] else ""
        print(f"{level}{name} is {found['state']}{was}. {found['summary']}", flush=True)
        problem = run_hook(config["hook"], entry, float(config["hook_s"]))
        if problem:
            print(f"{WARNING}hook: {problem}", flush=True)


if __name__ == "__main__":
    main()
