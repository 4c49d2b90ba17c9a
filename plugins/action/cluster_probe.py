# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.cluster_probe: every rank is watched from its own node, together.

Each host of the task has a process of its own on the control node. These processes share a
directory that lives as long as the run: each writes what its node reported, and reads what the
others wrote. So a rank that dies ends the wait on all hosts at once, and the progress of any rank
counts for all of them, which no process that sees one node could know.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import read_json, write
from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe

SILENT_NODE_S = 180.0
"""A node whose last report is older than this counts as unreachable, although its SSH port answers.

On a node of two cores with a load of 15 one report takes up to a minute; SSH itself notices a lost peer after that.
"""
RETRIES_ON_UNREACHABLE = 2
KNOCK_AFTER_S = 10.0
"""A node whose last report is older than this is asked whether its SSH port still answers."""
LOOK_AGAIN_S = 5.0
"""Time between two looks at a connection that hangs."""
FIRST_REPORT_S = 180.0
"""A node that has not reported at all for so long counts as unreachable."""
_OWN_OPTIONS = frozenset({"head", "ranks", "addresses", "wait", "stall_seconds", "poll_seconds", "restarts_allowed"})
_RANK_OPTIONS = frozenset({"name", "unit", "container", "tail_lines"})


@dataclass
class Board:
    """The shared directory: one file per node, replaced atomically."""

    folder: Path

    def write(self, node: str, message: Mapping[str, Any]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(self.folder / f"{node}.json", json.dumps({**message, "written_s": time.monotonic()}), 0o600)

    def read(self, node: str) -> dict[str, Any] | None:
        """The newest report of a node, or None when it has given none yet."""
        return read_json(self.folder / f"{node}.json") or None


@dataclass
class Picture:
    """What one process sees of the cluster: the reports so far, the API, the merged state."""

    reports: list[dict[str, Any]]
    api: dict[str, Any] | None
    missing: list[str]
    state: probe.ClusterState | None


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    """Watch every rank and the API until the cluster's state is settled."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the cluster's state on every host; fail on the hosts that the failure concerns."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.vars = task_vars or {}
        self.node = str(self.vars["inventory_hostname"])
        args = dict(self._task.args)
        self.head = str(args.get("head") or "")
        self.ranks = [str(node) for node in args.get("ranks") or []]
        self.addresses = {str(value): str(key) for key, value in (args.get("addresses") or {}).items()}
        self._check_arguments(args)
        if self.node not in self.ranks:
            return {**result, "changed": False, "skipped": True, "msg": f"{self.node} holds no rank of this model."}
        self.wait = _flag(args.get("wait", True)) and not self._task.check_mode
        self.poll_s = float(args.get("poll_seconds", 5))
        self.stall_s = float(args.get("stall_seconds", 600))
        self.restarts_allowed = int(args.get("restarts_allowed", 0))
        self.expected: dict[str, Any] = {
            "served_name": str(args.get("served_name", "")),
            "mtp_tokens": int(args.get("mtp_tokens") or 0),
            "rdma": _flag(args.get("rdma", False)),
            "canary": _flag(args.get("canary", True)),
        }
        self.args = args
        # All hosts of one task share its id; a retry or a second task has another.
        self.board = Board(Path(constants.DEFAULT_LOCAL_TMP) / f"cluster_probe_{self._task._uuid}")
        self.begun_s = time.monotonic()
        self.doors = self._find_doors() if self.wait else {}
        picture, quiet_s = self._watch() if self.wait else (self._look(), 0.0)
        result.update(self._result(picture, quiet_s))
        return result

    # --- arguments -----------------------------------------------------------------------------

    def _check_arguments(self, args: Mapping[str, Any]) -> None:
        for name in ("name", "served_name", "head", "ranks"):
            if not args.get(name):
                raise AnsibleActionFail(f"cluster_probe: the option '{name}' is missing.")
        if self.head not in self.ranks:
            raise AnsibleActionFail(
                f"The head {self.head!r} is not among the ranks {', '.join(self.ranks)}: the head holds rank 0."
            )
        in_play = [str(host) for host in self.vars.get("ansible_play_hosts_all", [])]
        absent = [node for node in self.ranks if node not in in_play]
        if absent:
            raise AnsibleActionFail(
                f"cluster_probe must run on every rank at once, and {', '.join(absent)} "
                "is not in this play: remove --limit, or add the missing hosts."
            )
        # A host that failed earlier in the play is no longer active: it will not report.
        active = [str(host) for host in self.vars.get("ansible_play_hosts", in_play)]
        self.failed_before = [node for node in self.ranks if node not in active]
        batch = [str(host) for host in self.vars.get("ansible_play_batch", active)]
        outside = [node for node in self.ranks if node in active and node not in batch]
        forks = int(self.vars.get("ansible_forks") or constants.DEFAULT_FORKS)
        if forks < len(self.ranks) or outside:
            raise AnsibleActionFail(
                f"cluster_probe needs all {len(self.ranks)} ranks at once; this run has {forks} forks "
                f"and batches of {len(batch)} host(s). Raise `forks`, and leave `serial` and `throttle` out."
            )

    # --- one look ------------------------------------------------------------------------------

    def _ask_node(self, pulse: list[str] | None, canaries: bool) -> dict[str, Any]:
        """Run the module on this host; a node that does not answer becomes a report of its own."""
        own = {key: value for key, value in self.args.items() if key in _RANK_OPTIONS}
        # Once the API is up only the completion is awaited: look often, to end soon after it.
        api_is_up = ((self.board.read(self.head) or {}).get("api") or {}).get("health") == 200
        poll_s = min(1.0, self.poll_s) if api_is_up else self.poll_s
        own.update(node=self.node, poll_seconds=poll_s if pulse is not None else 0)
        if pulse is not None:
            own["seen_pulse"] = pulse
        module = "gb10.cluster.rank_state"
        if self.node == self.head:
            module = "gb10.cluster.health_probe"
            own.update({key: value for key, value in self.args.items() if key not in _OWN_OPTIONS | _RANK_OPTIONS})
            own["canary"] = self.expected["canary"] and canaries
        problem = ""
        for attempt in range(RETRIES_ON_UNREACHABLE):
            try:
                with self._patience(endless=canaries and self.node == self.head):
                    if attempt:
                        self._connection.reset()
                    answer: dict[str, Any] = self._execute_module(
                        module_name=module, module_args=own, task_vars=self.vars
                    )
            except _NodeSilentError as silence:
                problem = str(silence)
                break
            except AnsibleConnectionFailure as failure:
                problem = str(failure)
                continue
            if answer.get("unreachable"):
                problem = str(answer.get("msg", "unreachable"))
                continue
            if "rank" not in answer:
                raise AnsibleActionFail(f"{module} failed on {self.node}: {answer.get('msg', answer)}")
            return {"rank": answer["rank"], "api": answer.get("api"), "pulse": answer.get("pulse", [])}
        return {"rank": probe.unreachable_rank(self.node, problem), "api": None, "pulse": []}

    def _picture(self) -> Picture:
        reports: list[dict[str, Any]] = []
        missing: list[str] = []
        api: dict[str, Any] | None = None
        now_s = time.monotonic()
        for node in self.ranks:
            if node in self.failed_before:
                reports.append(probe.unreachable_rank(node, "it failed or was out of reach earlier in this play"))
                continue
            message = self.board.read(node)
            if message is None:
                if self.begun_s + FIRST_REPORT_S < now_s:
                    reports.append(probe.unreachable_rank(node, f"no report for {FIRST_REPORT_S:.0f} s"))
                else:
                    missing.append(node)
                continue
            age_s = now_s - float(message["written_s"])
            if self.wait and not message.get("final"):
                silence = self._silence(node, age_s, asking=bool(message.get("asking")))
                if silence:
                    reports.append(probe.unreachable_rank(node, silence))
                    continue
            reports.append(message["rank"])
            if node == self.head:
                api = message.get("api")
        state = None
        lost = any(report["state"] in (probe.DEAD, probe.UNREACHABLE) for report in reports)
        if self.head not in missing and (lost or not missing):
            state = probe.merge(
                reports,
                api,
                head=self.head,
                expected=self.expected,
                nodes_by_address=self.addresses,
            )
        return Picture(reports, api, missing, state)

    def _silence(self, node: str, age_s: float, *, asking: bool) -> str:
        """Why a node that has not reported for so long counts as gone; empty when it does not."""
        overdue_s = age_s - self.poll_s
        if overdue_s > KNOCK_AFTER_S and self.doors.get(node) and not _door_opens(*self.doors[node]):
            return f"no report for {age_s:.0f} s, and {self.doors[node][0]} port {self.doors[node][1]} is silent"
        if overdue_s > SILENT_NODE_S and not asking:
            return f"no report for {age_s:.0f} s"
        return ""

    def _find_doors(self) -> dict[str, tuple[str, int]]:
        """The SSH address of each node that this machine reaches directly, not through a jump host."""
        doors: dict[str, tuple[str, int]] = {}
        known = self.vars.get("hostvars", {})
        for node in self.ranks:
            facts = known[node] if node in known else {}  # noqa: SIM401 - HostVars gives no KeyError
            host = str(facts.get("ansible_host") or "")
            try:
                port = int(facts.get("ansible_port") or 22)
            except (TypeError, ValueError):
                continue
            if host and _door_opens(host, port):
                doors[node] = (host, port)
        return doors

    @contextmanager
    def _patience(self, *, endless: bool) -> Iterator[None]:
        """Leave a connection that hangs, when the node's SSH port is shut or the silence lasts too long.

        SSH itself notices a lost peer only after a minute. A completion may take as long as it
        yields: then only a shut port ends the wait.
        """
        if not self.wait or self._task.timeout or threading.current_thread() is not threading.main_thread():
            yield
            return
        begun_s = time.monotonic()

        def look(_signal: int, _frame: object) -> None:
            reason = self._silence(self.node, time.monotonic() - begun_s, asking=endless)
            if reason:
                raise _NodeSilentError(reason)

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, self.poll_s + KNOCK_AFTER_S + 0.1, LOOK_AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    # --- the wait ------------------------------------------------------------------------------

    def _look(self) -> Picture:
        """Look once at every rank, and then, all of them being up, ask for completions."""
        answer = self._ask_node(None, canaries=False)
        self.board.write(self.node, answer)
        self._await_reports(FIRST_REPORT_S)
        if self.node == self.head:
            if self.expected["canary"] and self._peers_are_up(self._picture()):
                self.board.write(self.node, {**answer, "asking": True})
                answer = self._ask_node(None, canaries=True)
            self.board.write(self.node, {**answer, "final": True})
        else:
            limit_s = FIRST_REPORT_S + float(self.args.get("silence_seconds", 120))
            self._await(lambda: bool((self.board.read(self.head) or {}).get("final")), limit_s)
        return self._picture()

    def _watch(self) -> tuple[Picture, float]:
        """Look, publish and read until the state is settled; the figure is the stall in seconds, else 0."""
        watch = probe.StallWatch()
        restarts: int | None = None
        pulse: list[str] | None = None
        answer: dict[str, Any] = {}
        shown = ""
        while True:
            # The first look is for the others to see; a completion is asked for when all have been seen.
            canaries = bool(answer) and self.expected["canary"] and self._peers_are_up(self._picture())
            if self.node == self.head and canaries:
                # A completion may take long: the others must not take the silence for a death.
                self.board.write(self.node, {**answer, "asking": True})
            answer = self._ask_node(pulse, canaries)
            rank = answer["rank"]
            if restarts is None:
                restarts = int(rank.get("unit", {}).get("restarts", 0))
            rank["state"] = probe.state_with_restarts(rank, restarts, self.restarts_allowed)
            self.board.write(self.node, answer)
            if pulse is None:
                self._await_reports(self.poll_s)
            pulse = answer["pulse"] or pulse
            if self.node == self.head and not canaries and (answer["api"] or {}).get("health") == 200:
                # The API is up and was not asked for tokens yet: ask as soon as every rank is up.
                pulse = None
                self._await(lambda: self._peers_are_up(self._picture()), self.poll_s)
            picture = self._picture()
            if self.node == self.head:
                shown = self._show(picture, shown)
            quiet_s = watch.quiet_seconds(probe.progress_token(picture.reports, picture.api), time.monotonic())
            settled = picture.state is not None and picture.state.state != probe.STARTING
            gone = rank["state"] in (probe.DEAD, probe.UNREACHABLE)
            stalled = not (settled or gone) and quiet_s >= self.stall_s
            verdict = None if settled or gone or stalled else self._verdict_of_others()
            if verdict:
                picture.state, quiet_s = verdict
            if settled or gone or stalled or verdict:
                quiet_s = quiet_s if stalled or verdict else 0.0
                verdict_data = picture.state.as_dict() if picture.state else None
                self.board.write(self.node, {**answer, "final": True, "verdict": verdict_data, "quiet_s": quiet_s})
                return picture, quiet_s

    def _verdict_of_others(self) -> tuple[probe.ClusterState, float] | None:
        """What another host has concluded, for one whose node was out of reach meanwhile."""
        for node in self.ranks:
            message = self.board.read(node) or {}
            if node != self.node and message.get("verdict"):
                return probe.state_from_dict(message["verdict"]), float(message["quiet_s"])
        return None

    def _peers_are_up(self, picture: Picture) -> bool:
        """Whether a completion is worth asking for: it hangs when a rank is gone."""
        others = [report for report in picture.reports if report.get("node") != self.node]
        return len(others) == len(self.ranks) - 1 and all(report.get("state") == probe.RUNNING for report in others)

    def _await(self, condition: Callable[[], bool], limit_s: float) -> None:
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s and not condition():
            time.sleep(0.2)

    def _await_reports(self, limit_s: float) -> None:
        """Wait until every rank that is still in the play has reported, or the time is over."""
        expected = [node for node in self.ranks if node not in self.failed_before]
        self._await(lambda: all(self.board.read(node) for node in expected), limit_s)

    def _show(self, picture: Picture, shown: str) -> str:
        """Print where the start is, when that has changed; a person is waiting."""
        if picture.state is None:
            return shown
        line = f"{self.args['name']}: {picture.state.progress}"
        if line != shown:
            self._display.display(f"  {line}")
        return line

    # --- the result ----------------------------------------------------------------------------

    def _result(self, picture: Picture, quiet_s: float) -> dict[str, Any]:
        own = self.board.read(self.node) or {}
        state = picture.state
        result: dict[str, Any] = {
            "changed": False,
            "rank": own.get("rank", {}),
            "stalled": quiet_s > 0,
            "missing": picture.missing,
        }
        if self.node == self.head:
            result["api"] = own.get("api") or {}
        if state is None:
            rank_state = str(result["rank"].get("state", ""))
            result.update(state=probe.DEAD, summary=f"{self.node} is {rank_state} before every rank has reported.")
            failed, message = True, str(result["summary"])
        else:
            merged = state.as_dict()
            merged["warnings_found"] = merged.pop("warnings")
            result.update(merged)
            failed = state.state != probe.READY
            message = probe.stall_sentence(state, quiet_s) if quiet_s else self._message(state)
        head_rank = next((each for each in picture.reports if each.get("node") == self.head), {})
        result["seconds"] = float(head_rank.get("unit", {}).get("seconds", 0.0))
        if failed and self.wait:
            # A failure is printed completely: return what explains it, and the log of the ranks concerned.
            rank = result.pop("rank", {})
            result.pop("api", None)
            result.update(failed=True, msg=message, tail=[] if self._bystander(state) else rank.get("tail", []))
        return result

    def _bystander(self, state: probe.ClusterState | None) -> bool:
        """Whether this node neither is the head nor holds a rank that is lost or blamed."""
        if state is None or self.node == self.head:
            return False
        concerned = {*_lost(state), *(each.node for each in state.diagnosis)}
        return self.node not in concerned

    def _message(self, state: probe.ClusterState) -> str:
        """The complete diagnosis on the head and on the ranks concerned, a short one elsewhere."""
        lost = _lost(state)
        own = [each for each in state.diagnosis if each.node == self.node]
        if self.node == self.head:
            return state.summary
        if self.node in lost:
            explained = own[0].sentence() if own else f"{self.node} is {state.ranks[self.node]}."
            return f"This rank is {state.ranks[self.node]}. {explained}"
        return f"The engine is {state.state} because of {', '.join(lost) or self.head}; see there."


class _NodeSilentError(BaseException):
    """Raised out of a connection that hangs; not an Exception, so that no handler on the way catches it."""


def _door_opens(host: str, port: int) -> bool:
    """Whether a TCP connection to the address comes about within three seconds."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False


def _lost(state: probe.ClusterState) -> list[str]:
    return [node for node, each in state.ranks.items() if each not in (probe.RUNNING, probe.STARTING)]


def _flag(value: Any) -> bool:
    """A boolean option, which arrives as a string when it was templated."""
    return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "true", "yes", "on")
