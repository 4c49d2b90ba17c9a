# SPDX-License-Identifier: Apache-2.0
"""Decides what state an engine is in, from what each rank's node and the head's API report.

Pure functions: no I/O, no Ansible. A report of a rank comes from `probe_io.read_rank`, a report
of the API from `probe_http.probe_api`; both travel as plain dictionaries, because they cross the
wire between a node and the control node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import shaped
from ansible_collections.gb10.cluster.plugins.module_utils._probe import log as engine_log
from ansible_collections.gb10.cluster.plugins.module_utils._probe.explain import explain_loss, rank_diagnoses
from ansible_collections.gb10.cluster.plugins.module_utils._probe.front import front_problem
from ansible_collections.gb10.cluster.plugins.module_utils._probe.signatures import CAUSE, CONSEQUENCE, CONTEXT
from ansible_collections.gb10.cluster.plugins.module_utils._probe.states import (
    ABSENT,
    API,
    DEAD,
    DEGRADED,
    RANK,
    READY,
    RUNNING,
    STARTING,
    STOPPED,
    TRANSIENT_CAUSES,
    UNREACHABLE,
    WEDGED,
    WRONG_MODEL,
    Diagnosis,
)

#: What other rooms use of it, the states themselves included.
__all__ = [
    "ABSENT",
    "API_GRACE_S",
    "DEAD",
    "DEGRADED",
    "READY",
    "RUNNING",
    "STARTING",
    "STOPPED",
    "TRANSIENT_CAUSES",
    "UNREACHABLE",
    "WEDGED",
    "WRONG_MODEL",
    "ClusterState",
    "Diagnosis",
    "StallWatch",
    "merge",
    "progress_token",
    "stall_sentence",
    "state_from_dict",
    "state_of_unit",
    "state_with_restarts",
    "unreachable_rank",
]

API_GRACE_S = 20.0
"""How long after `Application startup complete` the API may still refuse connections."""
_RESTART = "Restart the engine on all nodes."


@dataclass(frozen=True)
class ClusterState:
    """The state of a served model over all its ranks.

    state: of CLUSTER_STATES; phase, done, total, progress: of the start; ranks: state of each
    node; diagnosis: the likeliest explanation first, empty for ready and for a start that goes
    on; warnings: what does not stop the engine but is worth knowing; summary: one sentence.
    """

    state: str
    phase: str
    done: int
    total: int
    progress: str
    ranks: dict[str, str]
    diagnosis: list[Diagnosis] = field(default_factory=list)
    warnings: list[Diagnosis] = field(default_factory=list)
    summary: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data for a module's or filter's result."""
        return asdict(self)


def state_of_unit(load_state: str, active_state: str, sub_state: str, result: str, *, container_running: bool) -> str:
    """The state of a rank from its unit's properties (systemctl show) and its container.

    A unit that waits for its next automatic restart is dead: its engine ended. An active unit
    whose container does not run yet is starting.
    """
    if load_state in ("not-found", "", "masked"):
        return ABSENT
    if active_state in ("active", "reloading", "refreshing"):
        return RUNNING if container_running else STARTING
    if active_state == "activating":
        return DEAD if sub_state.startswith("auto-restart") else STARTING
    if active_state in ("inactive", "deactivating") and result == "success":
        return STOPPED
    return DEAD


def state_with_restarts(report: Mapping[str, Any], restarts_before: int, allowed: int) -> str:
    """The state of a rank in the eyes of one who has watched it since `restarts_before` restarts.

    A run that ended since is a death even if systemd has started the next one, except that the
    first `allowed` of them are forgiven when no log shows a cause that the next run will meet again.
    """
    report = shaped(report, RANK)
    state = str(report["state"])
    died = int(report["unit"]["restarts"]) - restarts_before
    if state == DEAD and report["unit"]["active_state"] == "activating":
        died += 1
    elif state not in (RUNNING, STARTING):
        return state
    if died <= 0:
        return state
    lasting = any(each["kind"] == CAUSE and each["name"] not in TRANSIENT_CAUSES for each in report["findings"])
    return STARTING if died <= allowed and not lasting else DEAD


def unreachable_rank(node: str, reason: str) -> dict[str, Any]:
    """The report of a rank whose node did not answer."""
    return {
        "node": node,
        "state": UNREACHABLE,
        "unit": {},
        "log": engine_log.EngineLog().as_dict(),
        "findings": [
            {
                "name": "node_unreachable",
                "kind": CAUSE,
                "cause": f"The node does not answer: {' '.join(reason.split()).rstrip('.')}.",
                "remedy": "Check its power and its management network.",
                "line": "",
                "source": "ssh",
            }
        ],
    }


def progress_token(reports: Sequence[Mapping[str, Any]], api: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Equal for two looks exactly when no rank and not the API has moved on between them.

    A rank moves on by its state, its run, its phase or count, a line unlike any before, by what
    it reads from disk, or by another compiler process.
    """
    ranks = tuple(
        (
            str(report["node"]),
            str(report["state"]),
            str(report["unit"]["invocation"]),
            str(report["log"]["phase"]),
            int(report["log"]["done"]),
            int(report["log"]["total"]),
            int(report["log"]["distinct_lines"]),
            str(report["activity"]["compilers"]),
            int(report["activity"]["read_mib"]) // 64,
        )
        for report in sorted((shaped(each, RANK) for each in reports), key=lambda each: str(each["node"]))
    )
    return (ranks, int(shaped(api, API)["health"]))


def state_from_dict(data: Mapping[str, Any]) -> ClusterState:
    """The inverse of ClusterState.as_dict."""
    fields = dict(data)
    for name in ("diagnosis", "warnings"):
        fields[name] = [Diagnosis(**each) for each in fields[name]]
    return ClusterState(**fields)


@dataclass
class StallWatch:
    """Measures how long a token has not changed, by a clock of the caller's."""

    token: tuple[Any, ...] | None = None
    since_s: float = 0.0

    def quiet_seconds(self, token: tuple[Any, ...], now_s: float) -> float:
        """Seconds since the token last changed, 0 when it has just done so."""
        if token != self.token:
            self.token, self.since_s = token, now_s
        return now_s - self.since_s


def _head_log(reports: Sequence[Mapping[str, Any]], head: str) -> Mapping[str, Any]:
    """The log that shows how far the cluster is: the head's, which alone counts joins and shards."""
    for report in reports:
        if report.get("node") == head:
            return dict(report.get("log", {}))
    return {}


def _ready_for_s(reports: Sequence[Mapping[str, Any]], head: str) -> float:
    """How long ago the head's log entered its phase, by the head's own clock; 0.0 when that is not known.

    An instant that lies ahead of the clock was written before the clock was put back: it is long ago.
    """
    read_s = next((float(report.get("read_s") or 0.0) for report in reports if report.get("node") == head), 0.0)
    phase_s = float(_head_log(reports, head).get("phase_time_s") or 0.0)
    if not read_s or not phase_s:
        return 0.0
    return read_s - phase_s if read_s >= phase_s else float("inf")


def _expectations(reports: Sequence[Mapping[str, Any]], head: str, expected: Mapping[str, Any]) -> list[Diagnosis]:
    """What a serving engine's logs contradict of what the model's file expects."""
    wrong: list[Diagnosis] = []
    log = _head_log(reports, head)
    tokens = int(expected.get("mtp_tokens") or 0)

    def add(node: str, name: str, cause: str, remedy: str) -> None:
        wrong.append(Diagnosis(node, name, CAUSE, cause, remedy))

    if tokens and log.get("complete", False):
        mtp = log.get("mtp", {})
        found = int(mtp.get("num_spec_tokens") or 0)
        if found != tokens:
            add(
                head,
                "mtp_not_wired",
                f"The model expects speculation with {tokens} tokens; the engine's log shows {found}.",
                "Compare speculative-config in the model's file with the unit's command line.",
            )
        # vLLM says so for layers of the target's own checkpoint; a model, head or search of its own is no MTP model.
        elif "mtp" in str(mtp.get("method", "")) and not mtp.get("detected"):
            add(
                head,
                "mtp_not_detected",
                "Speculation is configured, but the engine's log reports no detected MTP model.",
                "Check the method in speculative-config and that the weights hold the MTP layers.",
            )
    if expected.get("rdma"):
        for report in reports:
            network = str(report.get("log", {}).get("nccl_network", ""))
            # HPC-X's plugin in NVIDIA's images calls it IBext_v8, IBext_v10: that is RDMA too.
            if network and not network.startswith("IB"):
                add(
                    str(report.get("node", "")),
                    "nccl_on_sockets",
                    f"NCCL uses the network {network} where RDMA is expected.",
                    "Give the container /dev/infiniband, IPC_LOCK and an unlimited memlock.",
                )
    return wrong


def _api_problem(api: Mapping[str, Any], head: str, expected: Mapping[str, Any]) -> tuple[str, Diagnosis | None]:
    """The state that the API of a cluster with all ranks up shows, and why when it is not ready."""

    def why(name: str, cause: str, remedy: str) -> Diagnosis:
        return Diagnosis(head, name, CAUSE, cause, remedy)

    url = api.get("url", "the API")
    if api.get("key_refused"):
        return DEGRADED, why(
            "api_key_refused",
            f"{url} refuses the API key of this probe (HTTP {api.get('models_status')}).",
            "Compare VLLM_API_KEY of the caller with the head's environment file.",
        )
    wanted = str(expected.get("served_name", ""))
    models = [str(name) for name in api.get("models", [])]
    if wanted and wanted not in models:
        return WRONG_MODEL, why(
            "wrong_model",
            f"{url} serves {', '.join(models) or 'no model'} where {wanted} is expected.",
            "Stop what serves there, or correct served_name in the model's file.",
        )
    canaries = api.get("canaries", [])
    for canary in canaries:
        if canary.get("ok"):
            continue
        name, detail = canary.get("name", "canary"), canary.get("detail", "")
        if name == "pooling":
            return WEDGED if not canary.get("status") else DEGRADED, why(
                "canary_pooling",
                f"{url} gives no embedding, score or class: {detail}",
                "Compare serve.runner, and serve.hf-overrides if there is one, with the documentation of the model.",
            )
        if canary.get("tokens", 0):
            return DEGRADED, why(
                f"canary_{name}",
                f"The engine yields tokens, but its {name} canary failed: {detail}",
                "Compare the parsers and the chat template in the model's file with those of its documentation.",
            )
        if name == "completion":
            return WEDGED, why(
                "no_token",
                f"{url} accepts a completion and yields no token: {detail}",
                "A rank hangs or is gone: see the ranks' logs, then restart the engine on all nodes.",
            )
        return DEGRADED, why(
            f"canary_{name}",
            f"The {name} canary failed: {detail}",
            "Compare the parsers in the model's file with those of its documentation.",
        )
    if not canaries and expected.get("canary", True):
        return STARTING, None
    unreached = front_problem(api.get("front") or {}, head)
    return (DEGRADED, unreached) if unreached else (READY, None)


def merge(
    reports: Sequence[Mapping[str, Any]],
    api: Mapping[str, Any] | None,
    *,
    head: str,
    expected: Mapping[str, Any] | None = None,
    nodes_by_address: Mapping[str, str] | None = None,
) -> ClusterState:
    """The cluster's state from its ranks' reports and the head's view of the API.

    reports: one a rank, as `read_rank` gives them, each with its `node`; api: as `probe_api`
    gives it, or None when nobody asked; expected: served_name, mtp_tokens, rdma, canary (false
    when the caller did not want a completion); nodes_by_address: whose fabric address is whose,
    so that a line that Ray forwarded names its own node.
    Raises ValueError when no report is the head's.
    """
    expected = expected or {}
    reports = [shaped(each, RANK) for each in reports]
    known = {str(report.get("node", "")): str(report.get("state", ABSENT)) for report in reports}
    if head not in known:
        raise ValueError(
            f"There is no report of the head {head!r} among those of {', '.join(sorted(known)) or 'no node'}."
        )
    api = shaped(api, API) if api else {}
    log = _head_log(reports, head)
    phase = str(log.get("phase", "none"))
    done, total = int(log.get("done", 0)), int(log.get("total", 0))
    health = int(api.get("health", 0))
    findings = rank_diagnoses(reports, nodes_by_address or {})
    lost = {node for node, state in known.items() if state not in (RUNNING, STARTING)}
    diagnosis: list[Diagnosis] = []

    if all(state in (ABSENT, STOPPED) for state in known.values()):
        state = ABSENT
    elif lost:
        state = DEGRADED if health == 200 and known[head] == RUNNING else DEAD
        diagnosis = explain_loss(reports, findings, lost)
    elif health == 503:
        state, dead = DEAD, "/health answers 503: the engine behind the API is dead."
        diagnosis = [*findings, Diagnosis(head, "health_503", CONSEQUENCE, dead, _RESTART)]
    elif health == 200:
        state, problem = _api_problem(api, head, expected)
        if state == READY and STARTING in known.values():
            state = STARTING
        if problem:
            diagnosis = [problem, *(findings if state == WEDGED else [])]
        elif state == READY:
            contradictions = _expectations(reports, head, expected)
            if contradictions:
                state, diagnosis = DEGRADED, contradictions
    elif phase == "ready" and api and _ready_for_s(reports, head) > API_GRACE_S:
        silent = api.get("health_error") == "timeout"
        state, name = (WEDGED, "api_silent") if silent else (DEAD, "api_gone")
        how = "accepts connections without answering" if silent else "does not accept connections"
        cause = f"The engine reported that it serves, and {api.get('url', 'its API')} {how}."
        diagnosis = [*findings, Diagnosis(head, name, CONSEQUENCE, cause, _RESTART)]
    else:
        state = STARTING

    if state == READY:
        phase, done, total = "ready", 0, 0
    progress = engine_log.describe_progress(phase, done, total)
    others = sorted({str(unit) for report in reports for unit in report.get("others", [])})
    worth_knowing = {READY: (CONTEXT,), STARTING: (CAUSE, CONTEXT)}.get(state, ())
    warnings = [each for each in findings if each.kind in worth_knowing and each.name != "driver_no_memory"]
    return ClusterState(
        state=state,
        phase=phase,
        done=done,
        total=total,
        progress=progress,
        ranks=known,
        diagnosis=diagnosis,
        warnings=warnings,
        summary=_summary(state, progress, known, diagnosis, api, others),
    )


def _summary(
    state: str,
    progress: str,
    known: Mapping[str, str],
    diagnosis: Sequence[Diagnosis],
    api: Mapping[str, Any],
    others: Sequence[str],
) -> str:
    if state == READY:
        canaries = api.get("canaries", [])
        models = ", ".join(api.get("models", []))
        if not canaries:
            return f"{len(known)} rank(s) up, {models} is listed; no completion was asked for."
        answers = [str(canary["answer"]) for canary in canaries if canary.get("answer")]
        if answers:
            return f"{len(known)} rank(s) up, {models} answered with {answers[0]}."
        tokens = sum(int(canary.get("tokens", 0)) for canary in canaries)
        return f"{len(known)} rank(s) up, {models} answered with {tokens} token(s)."
    if state == STARTING:
        return f"Starting: {progress}."
    if state == ABSENT:
        remedy = "give its model with -e model=…, or start this one with playbooks/serve.yml"
        return "No rank is started." + (f" {', '.join(others)} runs instead: {remedy}." if others else "")
    lost = [f"{node} {each}" for node, each in known.items() if each not in (RUNNING, STARTING)]
    ranks = f" ({', '.join(lost)})" if lost else ""
    first = f" {diagnosis[0].sentence()}" if diagnosis else ""
    return f"The engine is {state}{ranks} in phase: {progress}.{first}"


def stall_sentence(cluster: ClusterState, quiet_seconds: float) -> str:
    """Says where a start came to a halt."""
    suspects = [*cluster.diagnosis, *cluster.warnings]
    first = f" {suspects[0].sentence()}" if suspects else ""
    return (
        f"The start has made no progress for {quiet_seconds:.0f} s in phase: {cluster.progress} "
        f"(ranks: {', '.join(f'{node} {state}' for node, state in cluster.ranks.items())}).{first}"
    )
