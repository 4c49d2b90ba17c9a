# SPDX-License-Identifier: Apache-2.0
"""The nine targets on Kubernetes: every value of the source, strict schemas, and bad input in sentences."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import render
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import (
    DynamoError,
    Settings,
    Target,
    model_of,
    resolve,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

REPO = Path(__file__).resolve().parents[3]
TABLES = serve_files.load_tables()
PUBLISHED = yaml.safe_load((REPO / "tests/unit/fixtures/dynamo/targets.yml").read_text(encoding="utf-8"))
NAMES = [row["target"] for row in PUBLISHED]


def catalogue() -> list[dict[str, Any]]:
    files = sorted((REPO / "playbooks" / "group_vars").glob("model_*.yml"))
    return [yaml.safe_load(file.read_text(encoding="utf-8"))["model_spec"] for file in files]


SPEC = next(spec for spec in catalogue() if spec.get("dynamo"))


def target(name: str, **settings: Any) -> Target:
    return resolve(SPEC, name, Settings(**{"namespace": "ultra", **settings}), TABLES)


def components(name: str, **settings: Any) -> dict[str, Any]:
    return {each["name"]: each for each in render.graph(target(name, **settings))["spec"]["components"]}


def main(component: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = component["podTemplate"]["spec"]["containers"]
    return containers[0]


def option(script: str, name: str) -> str | None:
    """Return the value of an option in the line that becomes the engine, or an empty text for a switch."""
    line = script.splitlines()[-1]
    found = re.search(rf"--{name}(?: (?!--)('[^']*'|\"[^\"]*\"|\S+))?(?= |$)", line)
    return None if found is None else (found[1] or "").strip("'\"")


def test_the_targets_are_those_of_the_source_one_to_one() -> None:
    assert list(SPEC["dynamo"]["targets"]) == NAMES


@pytest.mark.parametrize("row", PUBLISHED, ids=NAMES)
def test_every_value_of_a_target_is_the_published_one(row: dict[str, Any]) -> None:
    found, values = target(row["target"]), row["values"]
    graph = render.graph(found)
    assert graph["metadata"]["name"] == row["graph"]
    assert graph["metadata"]["labels"]["nemotron-ultra.nvidia.com/topology"] == row["label"]
    assert graph["metadata"]["labels"]["nemotron-ultra.nvidia.com/workload"] == row["workload"]
    assert found.reference == row["row"]
    frontend, *workers = graph["spec"]["components"]
    assert f"--kv-cache-block-size {values['block']}" in main(frontend)["args"][0]
    assert len(workers) == (2 if row["target"].startswith("disagg") else 1)
    for worker in workers:
        script, pod = main(worker)["args"][0], worker["podTemplate"]["spec"]
        for name, key in (
            ("tensor-parallel-size", "tp"), ("max-num-seqs", "seqs"), ("max-num-batched-tokens", "batched"),
            ("gpu-memory-utilization", "util"), ("block-size", "block"),
        ):  # fmt: skip
            assert option(script, name) == str(values[key])
        assert option(script, "spec-tokens") == (str(values["mtp"]) if values["mtp"] else None)
        assert option(script, "spec-method") == ("nemotron_h_mtp" if values["mtp"] else None)
        assert option(script, "max-model-len") == "262144"
        assert main(worker)["resources"]["limits"]["nvidia.com/gpu"] == str(values["tp"])
        assert main(worker)["resources"]["requests"]["memory"] == "750Gi"
        assert worker["sharedMemorySize"] == "64Gi"
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": f"NVIDIA-{row['gpu']}"}
        assert pod["runtimeClassName"] == "nvidia"


def test_the_command_is_in_the_order_of_the_source() -> None:
    script = main(components("agg-b200-chat-mtp")["worker"])["args"][0]
    assert re.findall(r"--([a-z0-9-]+)", script.splitlines()[-1]) == [
        "model", "served-model-name", "tensor-parallel-size", "trust-remote-code", "max-model-len", "max-num-seqs",
        "max-num-batched-tokens", "gpu-memory-utilization", "no-enable-flashinfer-autotune", "block-size",
        "enable-expert-parallel", "mamba-cache-mode", "enable-prefix-caching", "spec-method", "spec-tokens",
        "dyn-tool-call-parser", "dyn-reasoning-parser", "reasoning-parser-plugin", "reasoning-parser",
        "no-disable-hybrid-kv-cache-manager",
    ]  # fmt: skip


def test_the_environment_is_in_the_order_of_the_source() -> None:
    aggregated = [each["name"] for each in render.graph(target("agg-h200-chat-mtp"))["spec"]["env"]]
    assert aggregated[:3] == ["HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"]
    assert aggregated[-4:] == ["NCCL_IB_DISABLE", "NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE", "DYN_LOG"]
    assert len(aggregated) == 25
    disaggregated = [each["name"] for each in render.graph(target("disagg-b200-agentic"))["spec"]["env"]]
    assert disaggregated == [name for name in aggregated if not name.startswith("NCCL_")]


def test_prefill_and_decode_pass_the_cache_over_rdma() -> None:
    found = components("disagg-b200-agentic")
    for name in ("prefill", "decode"):
        container = main(found[name])
        script = container["args"][0]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "4", "rdma/ib": "4"}
        assert container["resources"]["requests"]["rdma/ib"] == "4"
        assert json.loads(option(script, "kv-transfer-config") or "") == {
            "kv_connector": "NixlConnector", "kv_role": "kv_both"
        }  # fmt: skip
        assert option(script, "disaggregation-mode") == name
        env = {each["name"]: each["value"] for each in container["env"]}
        assert (env["UCX_NET_DEVICES"], env["NCCL_SOCKET_IFNAME"], env["NCCL_IB_DISABLE"]) == ("mlx5_0:1", "eth0", "0")
        assert "startupProbe" not in container
    assert option(main(found["prefill"])["args"][0], "kv-events-config")
    assert option(main(found["decode"])["args"][0], "kv-events-config") is None


def test_an_owners_choices_arrive() -> None:
    found = target(
        "agg-b200-chat-mtp", replicas=2, pull_secret="", token_in_servers=True, runtime_class="", storage_class="nfs",
        node_selector={"pool": "a"}, tolerations=[{"key": "x", "operator": "Exists"}], artifacts="logs", revision="abc",
    )  # fmt: skip
    frontend, worker = render.graph(found)["spec"]["components"]
    pod = worker["podTemplate"]["spec"]
    assert (worker["replicas"], frontend["replicas"]) == (2, 1)
    assert "imagePullSecrets" not in pod
    assert "runtimeClassName" not in pod
    assert main(worker)["envFrom"] == [{"secretRef": {"name": "hf-token-secret"}}]
    assert pod["nodeSelector"]["pool"] == "a"
    assert pod["tolerations"][-1] == {"key": "x", "operator": "Exists"}
    assert {"name": "artifact-root", "persistentVolumeClaim": {"claimName": "logs"}} in pod["volumes"]
    assert render.claim(found)["spec"]["storageClassName"] == "nfs"
    assert "'abc'" in render.download_job(found)["spec"]["template"]["spec"]["containers"][0]["command"][2]
    assert found.total_gpus == 8


def test_servers_do_not_get_the_token_unless_asked() -> None:
    assert "hf-token-secret" not in json.dumps(render.graph(target("agg-b200-chat-mtp")))


def test_an_existing_claim_is_only_checked() -> None:
    assert list(render.objects(target("agg-b200-chat-mtp", existing_claim=True))) == [
        "30-model-validate.yaml",
        "40-graph.yaml",
    ]


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in NAMES:
        for component in render.graph(target(name))["spec"]["components"]:
            pod = copy.deepcopy(component["podTemplate"])
            pod["metadata"]["name"] = "x"
            found.append((f"{name}/{component['name']}", {"apiVersion": "v1", "kind": "Pod", **pod}))
    return found


@pytest.mark.parametrize("pod", [pod for _rest, pod in pods()], ids=[where for where, _rest in pods()])
def test_every_pod_template_is_strictly_valid(pod: dict[str, Any]) -> None:
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_there_are_nineteen_pod_templates() -> None:
    assert len(pods()) == 19


def test_claim_and_jobs_are_strictly_valid() -> None:
    made = render.objects(target("agg-b200-chat-mtp"))
    for name in ("10-model-cache.yaml", "20-model-download.yaml", "30-model-validate.yaml"):
        kubernetes_validate.validate(made[name], "1.30", strict=True)


def test_a_job_is_named_by_its_content() -> None:
    one, other = (render.download_job(target("agg-b200-chat-mtp", revision=each)) for each in ("a", "b"))
    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert re.fullmatch(r"nemotron-ultra-model-download-[0-9a-f]{8}", one["metadata"]["name"])
    assert render.download_job(target("agg-h200-chat-mtp", revision="a"))["metadata"]["namespace"] == "ultra"


def test_no_name_is_longer_than_kubernetes_takes() -> None:
    for name in NAMES:
        for made in render.objects(target(name)).values():
            assert len(made["metadata"]["name"]) <= 63


#: In place of pip: installs a module tokenizers that reads what `model_at` writes.
TOKENIZERS = """import json


class Tokenizer:
    @classmethod
    def from_file(cls, path):
        cls.found = json.load(open(path))
        return cls()

    def encode(self, text):
        return type("Encoding", (), {"ids": self.found["ids"]})

    def decode(self, ids):
        return "Hello!"

    def get_vocab_size(self):
        return 7
"""
PIP = f"""import pathlib, sys
at = pathlib.Path(sys.argv[sys.argv.index("--target") + 1])
at.mkdir()
(at / "tokenizers.py").write_text({TOKENIZERS!r})
"""


def validate_in(view: Path, tmp_path: Path, pip: str = PIP) -> subprocess.CompletedProcess[str]:
    """Run the script of the validation job on a directory."""
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("__main__.py", pip)):
        (tmp_path / "modules" / "pip" / name).write_text(text, encoding="utf-8")
    found = target("agg-b200-chat-mtp")
    script = render.validate_job(found)["spec"]["template"]["spec"]["containers"][0]["command"][2]
    script = script.replace(f"{found.cache['path']}/{found.cache['view']}", str(view)).replace(
        "/tmp/compiled", str(tmp_path / "compiled")
    )
    script = script.replace("/tmp/library", str(tmp_path / "library"))
    env = {"PYTHONPATH": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)


def model_at(view: Path) -> None:
    view.mkdir()
    for name in SPEC["dynamo"]["cache"]["required"]:
        (view / name).write_text("{}" if name.endswith(".json") else "x = 1\n", encoding="utf-8")
    (view / "config.json").write_text('{"model_type": "nemotron_h"}', encoding="utf-8")
    (view / "tokenizer.json").write_text('{"ids": [1, 2]}', encoding="utf-8")
    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    (view / "m-1.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    (view / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))


def test_the_validation_job_accepts_a_complete_model(tmp_path: Path) -> None:
    model_at(tmp_path / "view")
    done = validate_in(tmp_path / "view", tmp_path)
    assert (done.returncode, done.stdout) == (
        0,
        "MODEL_VALIDATE_TOKENIZER vocabulary=7\nMODEL_VALIDATE_PASS model_type=nemotron_h\n",
    )


def test_the_validation_job_says_where_the_tokenizer_cannot_be_loaded(tmp_path: Path) -> None:
    model_at(tmp_path / "view")
    done = validate_in(tmp_path / "view", tmp_path, pip="raise SystemExit(1)\n")
    assert done.returncode == 0
    assert done.stdout.startswith("MODEL_VALIDATE_NOTE the tokenizer was not loaded: pip has no tokenizers\n")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda view: view.rename(f"{view}.gone"), 42, "class=missing_directory"),
        (lambda view: (view / "tokenizer.json").unlink(), 43, "class=missing_file"),
        (lambda view: (view / "tokenizer_config.json").write_text("{"), 43, "class=broken_file"),
        (lambda view: (view / "tokenizer.json").write_text('{"ids": []}'), 43, "class=broken_tokenizer"),
        (lambda view: (view / "ultra_v3_reasoning_parser.py").write_text("def"), 43, "class=broken_parser"),
        (lambda view: (view / "m-1.safetensors").unlink(), 43, "class=missing_shard"),
        (lambda view: os.truncate(view / "m-1.safetensors", (view / "m-1.safetensors").stat().st_size - 1), 43,
         "class=short_shard"),
    ],
)  # fmt: skip
def test_the_validation_job_names_what_is_missing(tmp_path: Path, damage: Any, code: int, words: str) -> None:
    model_at(tmp_path / "view")
    damage(tmp_path / "view")
    done = validate_in(tmp_path / "view", tmp_path)
    assert done.returncode == code
    assert words in done.stdout


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("", {}, "Which target? Give -e target=NAME: agg-b200-chat-mtp, "),
        ("agg-b200-chat-mpt", {}, "There is no target 'agg-b200-chat-mpt'. Did you mean 'agg-b200-chat-mtp'?"),
        ("agg-b200-chat-mtp", {"namespace": ""}, "Give -e dynamo_namespace=NAME: nothing is put into \"default\"."),
        ("agg-b200-chat-mtp", {"namespace": "default"}, "nothing is put into \"default\"."),
        ("agg-b200-chat-mtp", {"namespace": "My_Space"}, "dynamo_namespace 'My_Space' is no Kubernetes name."),
        ("agg-b200-chat-mtp", {"replicas": 0}, "dynamo_replicas is 0, but it must be 1 or more."),
        ("agg-b200-chat-mtp", {"runtime_version": "1.3"}, "dynamo_runtime_version '1.3' must be MAJOR.MINOR.PATCH."),
        ("disagg-b200-agentic", {"rdma": {"resource": "rdma/ib"}}, "dynamo_rdma.per_gpu is missing."),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_one_sentence(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DynamoError) as caught:
        resolve(model_of(catalogue(), name), name, Settings(**{"namespace": "ultra", **settings}), TABLES)
    assert sentence in str(caught.value)


def changed(**changes: Any) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    spec["dynamo"]["targets"]["agg-b200-chat-mtp"].update(changes)
    return spec


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gpu": "A100"}, "dynamo.targets.agg-b200-chat-mtp.gpu is 'A100', but it must be one of B200, H200."),
        ({"gpus": 8}, "dynamo.targets.agg-b200-chat-mtp: tensor-parallel-size is 4, but a worker has 8 GPUs."),
        ({"name": "Ultra"}, "dynamo.targets.agg-b200-chat-mtp.name 'Ultra' is no Kubernetes name:"),
        ({"serv": {}}, "dynamo.targets.agg-b200-chat-mtp.serv is not a known key. Did you mean 'serve'?"),
        ({"topology": "ring"}, "topology is 'ring', but it must be one of agg, disagg."),
        (
            {"serve": {"tensor-parallel-size": 4, "max-num-seq": 64}},
            "dynamo.serve.max-num-seq is an abbreviation that vLLM's parser would take for --max-num-seqs;",
        ),
    ],
)
def test_a_wrong_target_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DynamoError) as caught:
        resolve(changed(**changes), "agg-b200-chat-mtp", Settings(namespace="ultra"), TABLES)
    assert sentence in str(caught.value)


def test_an_image_without_a_version_needs_one() -> None:
    spec = copy.deepcopy(SPEC)
    spec["dynamo"]["image"]["tag"] = "latest"
    with pytest.raises(DynamoError, match="The image's tag 'latest' is no version: set dynamo_runtime_version"):
        resolve(spec, "agg-b200-chat-mtp", Settings(namespace="ultra"), TABLES)
    found = resolve(spec, "agg-b200-chat-mtp", Settings(namespace="ultra", runtime_version="1.3.0"), TABLES)
    assert {each["runtimeVersionOverride"] for each in render.graph(found)["spec"]["components"]} == {"1.3.0"}


def test_a_catalogue_without_targets_says_so() -> None:
    with pytest.raises(DynamoError, match="No model of the catalogue has targets on Kubernetes"):
        model_of([{"name": "x"}], "y")
