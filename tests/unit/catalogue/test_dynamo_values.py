# SPDX-License-Identifier: Apache-2.0
"""Each value of the nine manifests of the source against the rendered ones; what differs is listed, with its reason."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import Settings, model_of, resolve
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

REPO = Path(__file__).resolve().parents[3]
FIXTURES = REPO / "tests/unit/fixtures/dynamo"
TARGETS = yaml.safe_load((FIXTURES / "targets.yml").read_text(encoding="utf-8"))
RECIPE = yaml.safe_load((FIXTURES / "recipe.yml").read_text(encoding="utf-8"))
FILES = sorted((REPO / "playbooks" / "group_vars").glob("model_*.yml"))
SPECS = [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in FILES]
TABLES = serve_files.load_tables()

#: Pattern of a path → the row of the table in docs/dynamo.md that gives the reason.
DIFFERENT = {
    r"metadata\.namespace": "namespace, labels and annotation",
    r"metadata\.labels\.app\.kubernetes\.io/managed-by": "namespace, labels and annotation",
    r"metadata\.annotations\.gb10\.cluster/target": "namespace, labels and annotation",
    r"(worker|prefill|decode)\.container\.envFrom.*": "token in the server pods",
    r"(Frontend|prefill|decode)\.volumes\.artifact-root\..*": "volume of the logs",
    r"(prefill|decode)\.env\.ULTRA_NIXL_XFER_DEBUG_\w+": "debug log of the cache transfer",
}
#: Of the nine, how many values differ: an entry above that no target needs any more is seen here.
COUNTS = {"agg": 4, "disagg": 19}


def filled(value: Any, given: Mapping[str, str]) -> Any:
    """Return a value with <name> replaced in every text."""
    if isinstance(value, dict):
        return {key: filled(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, given) for each in value]
    return re.sub(r"<(\w+)>", lambda found: given[found[1]], value) if isinstance(value, str) else value


def expected_component(name: str, kind: str, row: Mapping[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """Return one component as the recipe has it."""
    topology = "disagg" if row["target"].startswith("disagg") else "agg"
    part = RECIPE["frontend" if kind == "frontend" else "worker"]
    given = {**given, "role": {"worker": "aggregate-worker"}.get(kind, kind)}
    container, pod = dict(part["container"]), dict(part.get("pod", {"imagePullSecrets": [{"name": "nvcr-secret"}]}))
    volumes = [RECIPE["cache"], RECIPE["artifacts"][topology], RECIPE["scratch"]]
    made: dict[str, Any] = {"name": name, "type": kind, "replicas": 1}
    words, env = list(part["words"]), {}
    if kind != "frontend":
        volumes.append(RECIPE["cubins"])
        made["sharedMemorySize"] = part["shared_memory"]
        made["exits"] = part["exits"]
        extra = {
            "<mtp>": part["mtp"] if row["values"]["mtp"] else [],
            "<transfer>": part["transfer"] if topology == "disagg" else [],
            "<mode>": part["mode"].get(kind, []),
        }
        words = [word for each in words for word in extra.get(each, [each])]
        if topology == "disagg":
            env = part["env_disagg"]
            container["resources"] = {each: {**held, **part["rdma"]} for each, held in container["resources"].items()}
        else:
            container["startupProbe"] = part["startup_probe"]
    made |= {"labels": RECIPE["pod_labels"][topology], "pod": pod, "container": container, "env": env, "words": words}
    made["volumes"] = {each["name"]: each for each in volumes}
    found: dict[str, Any] = filled(made, given)
    return found


def expected(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a target as the recipe has it."""
    disagg = row["target"].startswith("disagg")
    given = {"graph": row["graph"], "topology": row["label"], "workload": row["workload"], "gpu": row["gpu"]}
    given |= {key: str(value) for key, value in row["values"].items() if key != "mtp"}
    env = {**RECIPE["env"], **({} if disagg else RECIPE["env_agg"]), **RECIPE["env_last"]}
    kinds = {"Frontend": "frontend", **({"prefill": "prefill", "decode": "decode"} if disagg else {"worker": "worker"})}
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": row["graph"], "labels": filled(RECIPE["labels"], given)},
        "backendFramework": "vllm",
        "env": [f"{name}={value}" for name, value in env.items()],
        **{name: expected_component(name, kind, row, given) for name, kind in kinds.items()},
    }


def rendered_component(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rendered component in the form of `expected_component`."""
    pod = dict(made["podTemplate"]["spec"])
    (container,) = pod.pop("containers")
    container = dict(container)
    (script,) = container.pop("args")
    assert script.startswith("set -Eeuo pipefail\n")
    env = {each["name"]: each["value"] for each in container.pop("env", [])}
    found = {key: value for key, value in made.items() if key != "podTemplate"}
    found |= {"labels": made["podTemplate"]["metadata"]["labels"], "container": container, "env": env}
    found["volumes"] = {each["name"]: each for each in pod.pop("volumes")}
    found["words"] = shlex.split(script.splitlines()[-1])[1:]
    if made["type"] != "frontend":
        found["exits"] = [int(code) for code in re.findall(r"exit (\d+)", script)]
        assert "\nulimit -l unlimited\n" in script
    return {**found, "pod": pod}


def rendered(name: str) -> dict[str, Any]:
    """Return a rendered target in the form of `expected`."""
    found = resolve(model_of(SPECS, name), name, Settings(namespace="ultra"), TABLES)
    made = render.graph(found)
    return {
        "apiVersion": made["apiVersion"],
        "kind": made["kind"],
        "metadata": made["metadata"],
        "backendFramework": made["spec"]["backendFramework"],
        "env": [f"{each['name']}={each['value']}" for each in made["spec"]["env"]],
        **{each["name"]: rendered_component(each) for each in made["spec"]["components"]},
    }


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return path → value of everything in nested values; an empty one is a value."""
    if isinstance(value, dict) and value:
        pairs = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(str(number), each) for number, each in enumerate(value)]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, each in pairs:
        found |= leaves(each, f"{path}.{key}" if path else key)
    return found


def differences(row: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return path → (the recipe's value, the rendered one) where they are not the same."""
    theirs, ours = leaves(expected(row)), leaves(rendered(row["target"]))
    return {
        path: (theirs.get(path), ours.get(path))
        for path in theirs | ours
        if (path in theirs, theirs.get(path)) != (path in ours, ours.get(path))
    }


@pytest.mark.parametrize("row", TARGETS, ids=[row["target"] for row in TARGETS])
def test_each_value_is_the_recipes_but_for_what_is_listed(row: dict[str, Any]) -> None:
    found = differences(row)
    unlisted = {path: pair for path, pair in found.items() if not any(re.fullmatch(each, path) for each in DIFFERENT)}
    assert unlisted == {}
    assert len(found) == COUNTS["disagg" if row["target"].startswith("disagg") else "agg"]
    assert len(leaves(expected(row))) > 100


def test_each_difference_has_its_reason_in_the_documentation() -> None:
    text = (REPO / "docs" / "dynamo.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert set(DIFFERENT.values()) <= set(rows)


def test_a_changed_value_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPE["worker"]["container"]["resources"]["requests"], "memory", "751Gi")
    assert differences(TARGETS[0])["worker.container.resources.requests.memory"] == ("751Gi", "750Gi")
