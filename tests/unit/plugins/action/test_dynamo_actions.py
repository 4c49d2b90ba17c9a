# SPDX-License-Identifier: Apache-2.0
"""The actions of the role dynamo against a cluster in memory: what is sent, what is reported, what is never said."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.action import (
    dynamo_bench,
    dynamo_check,
    dynamo_object,
    dynamo_secret,
    dynamo_smoke,
    dynamo_status,
    dynamo_wait,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import action as base
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import bench, state
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Answer, ClusterError

CANARY = "hf_CANARYcanaryCANARYcanary"
Key = tuple[str, str, str]


class Memory:
    """A cluster in memory: apply merges the top level, and a dry run keeps nothing."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.applied: list[dict[str, Any]] = []
        self.refusals: list[ClusterError] = []
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, bytes | None]] = []

    def get(self, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    def find(self, kind: str, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        key, _equals, value = selector.partition("=")
        found = [item for (of, space, _name), item in self.objects.items() if (of, space) == (kind, namespace)]
        return [item for item in found if not selector or (item["metadata"].get("labels") or {}).get(key) == value]

    def apply(self, made: dict[str, Any], *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        for refusal in self.refusals:
            raise refusal
        meta = made["metadata"]
        key = (made["kind"], meta.get("namespace", ""), meta["name"])
        result = {**self.objects.get(key, {"status": {}}), **copy.deepcopy(made)}
        if not dry_run:
            self.applied.append(made)
            self.objects[key] = result
        return result

    def annotate(self, kind: str, name: str, namespace: str, annotations: dict[str, str]) -> None:
        self.objects[kind, namespace, name]["metadata"].setdefault("annotations", {}).update(annotations)

    def delete(self, kind: str, name: str, namespace: str = "", *, dry_run: bool = False) -> bool:
        if dry_run:
            return (kind, namespace, name) in self.objects
        return self.objects.pop((kind, namespace, name), None) is not None

    def ask(self, method: str, path: str, *, body: bytes | None = None, seconds: float = 0) -> Answer:
        self.asked.append((method, path, body))
        return self.answers.pop(0)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(base, "connect", lambda *_given: made)
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    return made


def run(module: Any, check: bool = False, **arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """Run an action; return its result and what it printed."""
    action = module.ActionModule.__new__(module.ActionModule)
    printed: list[str] = []
    action._display = SimpleNamespace(display=printed.append, warning=printed.append)
    action._task = SimpleNamespace(check_mode=check)
    spec = argument_spec(action.module)
    missing = [name for name, each in spec.items() if each.get("required") and name not in arguments]
    assert not missing
    given = {name: arguments.get(name, each.get("default")) for name, each in spec.items()}
    action.validate_argument_spec = lambda **_spec: (None, given)
    return action.run(None, {}), printed


def config_map(value: str, name: str = "c") -> dict[str, Any]:
    meta = {"name": name, "namespace": "ultra", "labels": {"a": "b"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"x": value}}


def test_an_object_is_applied_once_and_only_when_it_differs(memory: Memory) -> None:
    assert run(dynamo_object, object=config_map("1"))[0]["changed"] is True
    assert run(dynamo_object, object=config_map("1"))[0]["changed"] is False
    changed = run(dynamo_object, object=config_map("2"))[0]
    assert (changed["changed"], len(memory.applied)) == (True, 2)
    assert "x: '1'" in changed["diff"]["before"]
    assert "x: '2'" in changed["diff"]["after"]


def test_check_mode_and_a_rehearsal_change_nothing(memory: Memory) -> None:
    assert run(dynamo_object, check=True, object=config_map("1"))[0]["changed"] is True
    assert run(dynamo_object, dry_run=True, object=config_map("1"))[0]["changed"] is False
    assert memory.applied == []


def test_what_is_only_created_is_left_alone(memory: Memory) -> None:
    run(dynamo_object, object=config_map("1"))
    assert run(dynamo_object, object=config_map("2"), create_only=True)[0]["changed"] is False
    assert memory.objects["ConfigMap", "ultra", "c"]["data"] == {"x": "1"}


def test_a_conflict_names_who_owns_what(memory: Memory) -> None:
    causes = ({"field": ".spec.replicas", "message": 'conflict with "kubectl-edit" using v1'},)
    memory.refusals = [ClusterError("Apply failed with 1 conflict", 409, causes)]
    said = run(dynamo_object, object=config_map("1"))[0]["msg"]
    assert said == (
        "ConfigMap c was changed by others: kubectl-edit owns spec.replicas. Give these fields back, or set "
        "dynamo_force=true to take them."
    )


def test_a_refusal_of_a_webhook_is_shown_in_its_own_words(memory: Memory) -> None:
    memory.refusals = [ClusterError('admission webhook "x" denied the request: no image', 400)]
    said = run(dynamo_object, object=config_map("1"))[0]["msg"]
    assert said == 'ConfigMap c is refused: admission webhook "x" denied the request: no image'


def test_check_mode_without_the_namespace_says_what_was_not_checked(memory: Memory) -> None:
    memory.refusals = [ClusterError('namespaces "ultra" not found', 404)]
    result, printed = run(dynamo_object, check=True, object=config_map("1"))
    assert result["changed"] is True
    assert "does not exist yet" in printed[0]
    assert run(dynamo_object, object=config_map("1"))[0]["failed"]


def test_a_job_that_failed_is_run_again(memory: Memory) -> None:
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "ultra"}, "spec": {}}
    run(dynamo_object, object=made)
    assert run(dynamo_object, object=made)[0]["changed"] is False
    memory.objects["Job", "ultra", "j"]["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    assert run(dynamo_object, check=True, object=made)[0]["changed"] is True
    assert memory.objects["Job", "ultra", "j"]["status"]
    result, printed = run(dynamo_object, object=made)
    assert (result["changed"], memory.objects["Job", "ultra", "j"]["status"]) == (True, {})
    assert "Job j ended without success before" in printed[0]


@pytest.mark.usefixtures("memory")
def test_deleting_by_name_and_by_labels() -> None:
    for name in ("one", "two", "three"):
        run(dynamo_object, object=config_map("1", name))
    kept = {"kind": "ConfigMap", "metadata": {"name": "two", "namespace": "ultra"}}
    assert run(dynamo_object, check=True, object=kept, state="absent")[0]["removed"] == ["two"]
    assert run(dynamo_object, object=kept, state="absent", selector="a=b")[0]["removed"] == ["one", "three"]
    assert run(dynamo_object, object=kept, state="absent")[0]["changed"] is True
    assert run(dynamo_object, object=kept, state="absent")[0]["changed"] is False


@pytest.mark.usefixtures("memory")
def test_an_object_of_another_kind_is_one_sentence() -> None:
    assert "it has 'Cow'" in run(dynamo_object, object={"kind": "Cow", "metadata": {"name": "x"}})[0]["msg"]


def test_a_token_is_written_from_the_environment_and_never_said(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"name": "hf", "namespace": "ultra", "key": "HF_TOKEN", "env": "SOME_TOKEN"}
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    assert run(dynamo_secret, check=True, **asked)[0]["changed"] is True
    assert memory.applied == []
    result, printed = run(dynamo_secret, **asked)
    assert result == {"changed": True}
    assert base64.b64decode(memory.applied[0]["data"]["HF_TOKEN"]).decode() == CANARY
    assert CANARY not in json.dumps([result, printed])
    assert run(dynamo_secret, **asked)[0]["changed"] is False
    monkeypatch.delenv("SOME_TOKEN")
    assert run(dynamo_secret, **asked)[0]["changed"] is False


def test_a_pull_secret_is_made_of_a_docker_config(memory: Memory, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    asked: dict[str, Any] = {"name": "p", "namespace": "ultra", "docker_config": str(file)}
    file.write_text(json.dumps({"auths": {"nvcr.io": {"auth": CANARY}}}))
    assert run(dynamo_secret, **asked)[0] == {"changed": True}
    assert memory.applied[0]["type"] == "kubernetes.io/dockerconfigjson"
    assert run(dynamo_secret, **asked)[0] == {"changed": False}
    file.write_text(f"{{ {CANARY}")
    refused = run(dynamo_secret, **asked)[0]["msg"]
    assert refused == f"{file} is no Docker config.json that can be read: JSONDecodeError."
    file.write_text('{"credsStore": "desktop"}')
    assert "has no 'auths': a credential helper keeps them elsewhere" in run(dynamo_secret, **asked)[0]["msg"]


@pytest.mark.usefixtures("memory")
def test_waiting_prints_and_fails_with_the_cause() -> None:
    asked: dict[str, Any] = {"what": "graph", "name": "g", "namespace": "ultra"}
    assert run(dynamo_wait, check=True, **asked)[0]["skipped"]
    result, printed = run(dynamo_wait, **asked)
    assert result["msg"] == "g: The deployment was deleted while it was waited for. Remedy: run again."
    assert printed[0].endswith("gone")


def measured_on(tmp_path: Path, step: str, check: bool = False) -> dict[str, Any]:
    """Run one step of the benchmark that concerns the workers."""
    file = tmp_path / "trace.jsonl"
    file.write_text('{"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n')
    files = (Path(__file__).resolve().parents[4] / "playbooks" / "group_vars").glob("model_*.yml")
    specs = [yaml.safe_load(each.read_text(encoding="utf-8"))["model_spec"] for each in files]
    asked = {"specs": specs, "target": "agg-b200-chat-mtp", "settings": {"namespace": "ultra"}, "trace": str(file)}
    return run(dynamo_bench, check=check, step=step, **asked)[0]


def test_workers_are_marked_before_a_measurement_and_replaced_before_the_next(memory: Memory, tmp_path: Path) -> None:
    graph = {state.GRAPH_LABEL: "ultra-agg-b200-chat-mtp"}
    for name, kind in (("f", "frontend"), ("w", "worker")):
        labels = {**graph, state.COMPONENT_LABEL: kind}
        memory.objects["Pod", "ultra", name] = {"metadata": {"name": name, "labels": labels}}
    assert measured_on(tmp_path, "fresh") == {
        "changed": False,
        "graph": "ultra-agg-b200-chat-mtp",
        "workers": [],
    }
    job = measured_on(tmp_path, "plan")["job"]
    assert measured_on(tmp_path, "mark", check=True)["workers"] == ["w"]
    assert "annotations" not in memory.objects["Pod", "ultra", "w"]["metadata"]
    assert measured_on(tmp_path, "mark")["changed"] is False
    assert memory.objects["Pod", "ultra", "w"]["metadata"]["annotations"] == {bench.MEASURED: job["metadata"]["name"]}
    assert "annotations" not in memory.objects["Pod", "ultra", "f"]["metadata"]

    # A job that runs keeps its workers; one that failed is measured anew.
    key = ("Job", "ultra", job["metadata"]["name"])
    memory.objects[key] = {**job, "status": {}}
    assert measured_on(tmp_path, "fresh")["workers"] == []
    memory.objects[key]["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    assert measured_on(tmp_path, "fresh", check=True)["changed"] is True
    assert ("Pod", "ultra", "w") in memory.objects
    assert measured_on(tmp_path, "fresh")["workers"] == ["w"]
    assert ("Pod", "ultra", "w") not in memory.objects
    assert ("Pod", "ultra", "f") in memory.objects


def test_a_user_who_may_not_touch_pods_can_measure_all_the_same(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {state.GRAPH_LABEL: "ultra-agg-b200-chat-mtp", state.COMPONENT_LABEL: "worker"}
    meta = {"name": "w", "labels": labels, "annotations": {bench.MEASURED: "former"}}
    memory.objects["Pod", "ultra", "w"] = {"metadata": meta}

    def refuse(*_given: Any, **_more: Any) -> None:
        raise ClusterError('pods "w" is forbidden.', 403)

    monkeypatch.setattr(memory, "annotate", refuse)
    monkeypatch.setattr(memory, "delete", refuse)
    assert measured_on(tmp_path, "mark")["changed"] is False
    said = measured_on(tmp_path, "fresh")["msg"]
    assert said.startswith(
        'pods "w" is forbidden. Ask for a role that may delete pods, or set dynamo_bench_fresh=false'
    )


SMOKE = {"body": '{"model":"${MODEL_ID}",\n   "max_tokens":64}', "refused": "odd"}
GOOD = {
    "choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 3},
}


def answers(*found: tuple[int, Any]) -> list[Answer]:
    return [Answer(status, json.dumps(body).encode()) for status, body in found]


def test_the_smoke_test_sends_the_request_byte_for_byte(memory: Memory) -> None:
    memory.answers = answers((200, {"data": [{"id": "m"}]}), (200, GOOD), (400, {"error": "Unsupported parameter(s)"}))
    result, _printed = run(dynamo_smoke, smoke=SMOKE, model="m", service="g-frontend", namespace="ultra")
    assert result["refused"] is True
    prefix = "/api/v1/namespaces/ultra/services/g-frontend:8000/proxy"
    assert memory.asked[0] == ("GET", f"{prefix}/v1/models", None)
    assert memory.asked[1] == ("POST", f"{prefix}/v1/chat/completions", b'{"model":"m",\n   "max_tokens":64}')
    assert json.loads(memory.asked[2][2] or b"") == {"model": "m", "max_tokens": 64, "odd": True}
    assert run(dynamo_smoke, check=True, smoke=SMOKE, model="m", service="g", namespace="u")[0]["skipped"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([(200, {"data": []})], "/v1/models lists nothing, not m: the workers have not registered."),
        ([(503, "no")], "/v1/models answered 503 and no list of models"),
        ([(200, {"data": [{"id": "m"}]}), (500, "broken")], "The completion was answered 500"),
        ([(200, {"data": [{"id": "m"}]}), (200, {})], "another form than expected"),
        ([(200, {"data": [{"id": "m"}]}), (200, {"choices": [{"message": {"content": None}}]})], "has no content"),
        ([(200, {"data": [{"id": "m"}]}), (200, {**GOOD, "usage": {}})], "counts no tokens"),
    ],
)
def test_an_answer_that_is_not_good_fails(memory: Memory, found: list[tuple[int, Any]], words: str) -> None:
    memory.answers = answers(*found)
    result, _printed = run(dynamo_smoke, smoke=SMOKE, model="m", service="g-frontend", namespace="ultra")
    assert result["failed"]
    assert words in result["msg"]


def test_a_frontend_that_takes_what_it_must_refuse_is_warned_about(memory: Memory) -> None:
    memory.answers = answers((200, {"data": [{"id": "m"}]}), (200, GOOD), (200, GOOD))
    result, printed = run(dynamo_smoke, smoke=SMOKE, model="m", service="g-frontend", namespace="ultra")
    assert result["refused"] is False
    assert "odd at the top level was answered 200, expected 400" in printed[0]


def test_an_empty_namespace_is_named(memory: Memory) -> None:
    result, printed = run(dynamo_status, namespace="ultra")
    assert result["lines"] == ["Nothing is in the namespace ultra."]
    assert printed == ["  Nothing is in the namespace ultra."]
    assert memory.applied == []


def test_an_unknown_target_is_refused_before_the_cluster_is_asked(memory: Memory) -> None:
    specs: list[dict[str, Any]] = [{"dynamo": {"targets": {"agg-b200": {}}}}]
    result, _printed = run(dynamo_check, specs=specs, target="agg-b20", settings={"namespace": "ultra"})
    assert result["failed"] is True
    assert "There is no target 'agg-b20'. Did you mean 'agg-b200'?" in result["msg"]
    assert memory.asked == []
