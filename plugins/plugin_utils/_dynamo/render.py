# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes objects of one target: volume claim, jobs, graph.  Pure: a target in, dictionaries out.

Secrets are named, never held: their objects are written from memory by the role.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.spec import Target

MANAGED = {"app.kubernetes.io/managed-by": "gb10.cluster"}
MODELS, ARTIFACTS, SCRATCH = "shared-model-cache", "artifact-root", "runtime-tmp"
CUBINS = "/usr/local/lib/python3.12/dist-packages/flashinfer_cubin/cubins/flashinfer"
LIBRARY = "/tmp/library"
SHELL, STRICT = ("/bin/bash", "-lc"), "set -Eeuo pipefail"
#: Before this option the recipe has what passes the cache from prefill to decode.
_AFTER_TRANSFER = "--dyn-tool-call-parser"
#: Exit codes of the recipe's own checks [S3].
EXITS = {42: "no model", 43: "no parser", 96: "too few GPUs", 97: "GPU memory in use", 98: "GPU processes"}


def digest(template: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that change with a template: jobs cannot be changed, only be named anew."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]


def shared_labels(target: Target) -> dict[str, str]:
    """Return the labels of what all targets of a model share: the cache and its jobs do not change with the target."""
    return {"app.kubernetes.io/part-of": target.part_of, **MANAGED}


def labels(target: Target) -> dict[str, str]:
    """Return the labels of what belongs to one target."""
    return {"app.kubernetes.io/name": target.graph, **shared_labels(target)}


def claim(target: Target) -> dict[str, Any]:
    """Return the claim of the volume that holds the model."""
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{target.cache['size_gib']}Gi"}},
    }
    if target.settings.storage_class:
        spec["storageClassName"] = target.settings.storage_class
    return _object("v1", "PersistentVolumeClaim", target.cache["claim"], target, spec)


def download_job(target: Target) -> dict[str, Any]:
    """Return the job that brings the model's repository into the cache, at one revision, and checks its files."""
    view = f"{target.cache['path']}/{target.cache['view']}"
    script = "\n".join(
        [
            "set -eu",
            f"pip install --quiet --disable-pip-version-check huggingface_hub=={target.cache['hub_version']}",
            "python3 - <<'END'",
            "import os, threading, time, pathlib",
            "from huggingface_hub import HfApi, snapshot_download",
            f"repo, view = {target.repo!r}, pathlib.Path({view!r})",
            f"info = HfApi().model_info(repo, revision={target.revision!r}, files_metadata=True)",
            "commit, total = info.sha, sum(each.size or 0 for each in info.siblings)",
            "def report():",
            "    while True:",
            "        time.sleep(30)",
            "        done = sum(file.stat().st_size for file in view.rglob('*') if file.is_file())",
            "        print(f'MODEL_DOWNLOAD_PROGRESS bytes={done} total={total}', flush=True)",
            "threading.Thread(target=report, daemon=True).start()",
            "snapshot_download(repo, revision=commit, local_dir=view)",
            "(view / '.gb10-revision').write_text(commit + '\\n')",
            "END",
            *(f"test -r {shlex.quote(f'{view}/{file}')}" for file in target.cache["required"]),
            "echo MODEL_DOWNLOAD_PASS",
        ]
    )
    container = {
        "name": "download",
        "image": target.cache["image"],
        "command": ["/bin/sh", "-c", script],
        "env": [{"name": "HF_HOME", "value": "/tmp/hf"}],
        "envFrom": [{"secretRef": {"name": target.settings.token_secret}}],
        "volumeMounts": [{"name": MODELS, "mountPath": target.cache["path"]}],
    }
    return job(target, "model-download", container, backoff=1)


def validate_job(target: Target) -> dict[str, Any]:
    """Return the job that checks the cached model: files, each shard of the index and its length, parser, tokenizer."""
    view = f"{target.cache['path']}/{target.cache['view']}"
    script = "\n".join(
        [
            "import json, pathlib, py_compile, struct, subprocess, sys",
            f"view = pathlib.Path({view!r})",
            "def fail(code, words):",
            "    print('MODEL_VALIDATE_FAIL ' + words, flush=True)",
            "    sys.exit(code)",
            "if not view.is_dir():",
            "    fail(42, f'class=missing_directory path={view}')",
            f"for name in {list(target.cache['required'])!r}:",
            "    if not (view / name).is_file():",
            "        fail(43, f'class=missing_file path={view / name}')",
            "    if name.endswith('.json'):",
            "        try:",
            "            json.loads((view / name).read_text())",
            "        except ValueError as error:",
            "            fail(43, f'class=broken_file path={view / name} error={error}')",
            "kind = json.loads((view / 'config.json').read_text())['model_type']",
            "index = view / 'model.safetensors.index.json'",
            "shards = sorted(set(json.loads(index.read_text())['weight_map'].values())) if index.is_file() else []",
            "for name in shards or sorted(file.name for file in view.glob('*.safetensors')):",
            "    file = view / name",
            "    if not file.is_file():",
            "        fail(43, f'class=missing_shard path={file}')",
            "    with file.open('rb') as stream:",
            "        (size,) = struct.unpack('<Q', stream.read(8))",
            "        header = json.loads(stream.read(size))",
            "    ends = [each['data_offsets'][1] for key, each in header.items() if key != '__metadata__']",
            "    wanted = 8 + size + max(ends, default=0)",
            "    if file.stat().st_size != wanted:",
            "        fail(43, f'class=short_shard path={file} bytes={file.stat().st_size} expected={wanted}')",
            "for file in view.glob('*.py'):",
            "    try:",
            "        py_compile.compile(str(file), cfile='/tmp/compiled', doraise=True)",
            "    except py_compile.PyCompileError as error:",
            "        fail(43, f'class=broken_parser path={file} error={error.exc_value}')",
            # Without a package index the tokenizer's file has still been read as JSON above.
            f"pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', {LIBRARY!r}]",
            f"if subprocess.run([*pip, 'tokenizers=={target.cache['tokenizers_version']}']).returncode:",
            "    print('MODEL_VALIDATE_NOTE the tokenizer was not loaded: pip has no tokenizers', flush=True)",
            "else:",
            f"    sys.path.insert(0, {LIBRARY!r})",
            "    import tokenizers",
            "    try:",
            "        loaded = tokenizers.Tokenizer.from_file(str(view / 'tokenizer.json'))",
            "        ids = loaded.encode('Hello!').ids",
            "        if not ids or 'Hello' not in loaded.decode(ids):",
            "            raise ValueError(f'Hello! becomes {ids}')",
            "    except Exception as error:",
            "        fail(43, f'class=broken_tokenizer path={view}/tokenizer.json error={error}')",
            "    print(f'MODEL_VALIDATE_TOKENIZER vocabulary={loaded.get_vocab_size()}', flush=True)",
            "print(f'MODEL_VALIDATE_PASS model_type={kind}', flush=True)",
        ]
    )
    container = {
        "name": "validate",
        "image": target.cache["image"],
        "command": ["python3", "-c", script],
        "volumeMounts": [{"name": MODELS, "mountPath": target.cache["path"], "readOnly": True}],
    }
    return job(target, "model-validate", container, backoff=0)


def job(
    target: Target,
    what: str,
    container: Mapping[str, Any],
    backoff: int,
    volumes: Sequence[Mapping[str, Any]] = (),
    deadline: int = 0,
    affinity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a job with one container; its name has the digest of its template."""
    template = {
        "metadata": {
            "labels": {**shared_labels(target), "gb10.cluster/job": what},
            "annotations": {"gb10.cluster/revision": target.revision},
        },
        "spec": {
            "restartPolicy": "Never",
            "containers": [dict(container)],
            "volumes": [dict(each) for each in volumes] or [cache_volume(target)],
            **({"affinity": dict(affinity)} if affinity else {}),
        },
    }
    spec = {"backoffLimit": backoff, "template": template, **({"activeDeadlineSeconds": deadline} if deadline else {})}
    made = _object("batch/v1", "Job", f"{target.part_of}-{what}-{digest(spec)}", target, spec)
    made["metadata"]["labels"]["gb10.cluster/job"] = what
    return made


def graph(target: Target) -> dict[str, Any]:
    """Return the DynamoGraphDeployment of a target."""
    if target.disaggregated:
        workers = [_worker(target, "prefill", "prefill"), _worker(target, "decode", "decode")]
    else:
        workers = [_worker(target, "worker", "worker")]
    spec = {
        "backendFramework": "vllm",
        "env": [{"name": name, "value": value} for name, value in target.env],
        "components": [_frontend(target), *workers],
    }
    made = _object("nvidia.com/v1beta1", "DynamoGraphDeployment", target.graph, target, spec)
    own = f"{target.part_of}.nvidia.com"
    made["metadata"]["labels"] |= labels(target) | {
        f"{own}/backend": "vllm",
        f"{own}/topology": target.label,
        f"{own}/workload": target.workload,
    }
    made["metadata"]["annotations"] = {"gb10.cluster/target": target.target}
    return made


def _frontend(target: Target) -> dict[str, Any]:
    port = int(target.frontend["port"])
    command = [
        "python3", "-m", "dynamo.frontend",
        "--router-mode", str(target.frontend["router_mode"]),
        *(["--router-kv-events"] if target.frontend["router_kv_events"] else []),
        "--kv-cache-block-size", str(target.block_size),
        "--http-host", "0.0.0.0",
        "--http-port", str(port),
    ]  # fmt: skip
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10}
    container = {
        "name": "main",
        "image": target.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(SHELL),
        "args": ["\n".join([STRICT, _logged("frontend", command)])],
        "ports": [{"name": "http", "containerPort": port}],
        "startupProbe": {**probe, "timeoutSeconds": 10, "failureThreshold": 360},
        "readinessProbe": {**probe, "timeoutSeconds": 3, "failureThreshold": 3},
        "volumeMounts": _mounts(target),
    }
    pod = {"containers": [container], "volumes": _volumes(target), **_placement(target, frontend=True)}
    return _component(target, "Frontend", "frontend", 1, "frontend", pod)


def _worker(target: Target, name: str, kind: str) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(target.gpus)}
    if target.disaggregated:
        rdma = target.settings.rdma
        gpus[str(rdma["resource"])] = str(int(rdma["per_gpu"]) * target.gpus)
    container: dict[str, Any] = {
        "name": "main",
        "image": target.image,
        "imagePullPolicy": "IfNotPresent",
        "workingDir": "/workspace",
        "command": list(SHELL),
        "args": [_start(target, kind)],
        "resources": {
            "requests": {**gpus, "memory": target.workers["memory"], "ephemeral-storage": target.workers["storage"]},
            "limits": dict(gpus),
        },
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "capabilities": {"add": ["IPC_LOCK", "SYS_RESOURCE"]}
        },
        "volumeMounts": [*_mounts(target), {"name": "flashinfer-cubins", "mountPath": CUBINS}],
    }  # fmt: skip
    if target.settings.token_in_servers:
        container["envFrom"] = [{"secretRef": {"name": target.settings.token_secret}}]
    if target.disaggregated:
        container["env"] = [{"name": key, "value": value} for key, value in _transfer_env(target).items()]
    else:
        container["startupProbe"] = {
            "httpGet": {"path": "/live", "port": 9090},
            "periodSeconds": 60,
            "timeoutSeconds": 20,
            "failureThreshold": 30,
        }
    pod = {
        "containers": [container],
        "volumes": [*_volumes(target), {"name": "flashinfer-cubins", "emptyDir": {"medium": "Memory"}}],
        **_placement(target, frontend=False),
    }
    role = {"worker": "aggregate-worker"}.get(kind, kind)
    made = _component(target, name, kind, target.settings.replicas, role, pod)
    made["sharedMemorySize"] = target.workers["shared_memory"]
    return made


def _transfer_env(target: Target) -> dict[str, str]:
    """Return what prefill and decode need to pass the cache over RDMA [S3, repository]."""
    rdma = target.settings.rdma
    return {
        "UCX_TLS": "rc_x,rc,cuda_copy,cuda_ipc",
        "UCX_NET_DEVICES": str(rdma["devices"]),
        "UCX_IB_ADDR_TYPE": "eth",
        "UCX_RNDV_SCHEME": "get_zcopy",
        "UCX_RNDV_THRESH": "0",
        "UCX_RC_TIMEOUT": "600s",
        "UCX_KEEPALIVE_INTERVAL": "300s",
        "NCCL_IB_DISABLE": "0",
        "NCCL_SOCKET_IFNAME": str(rdma["interface"]),
        "GLOO_SOCKET_IFNAME": str(rdma["interface"]),
        "NCCL_STORE_TIMEOUT": "7200",
        "NIXL_LOG_LEVEL": "INFO",
    }


def _start(target: Target, kind: str) -> str:
    """Return the script that a worker begins with: the recipe's checks with its exit codes, then the engine."""
    view = "$MODEL_PATH"
    args = list(target.args)
    if kind in ("prefill", "decode"):
        at = args.index(_AFTER_TRANSFER)
        args[at:at] = ["--kv-transfer-config", json.dumps(target.workers["kv_transfer"], separators=(",", ":"))]
        args += ["--disaggregation-mode", kind]
    if kind == "prefill":
        args += ["--kv-events-config", json.dumps(target.workers["kv_events"], separators=(",", ":"))]
    used = "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits"
    apps = "nvidia-smi --query-compute-apps=pid --format=csv,noheader"
    parser = next(file for file in target.cache["required"] if file.endswith(".py"))
    lines = [
        STRICT,
        f'test -r "{view}/config.json" || {{ echo "no model at {view}" >&2; exit 42; }}',
        f'test -r "{view}/{parser}" || {{ echo "no {parser} at {view}" >&2; exit 43; }}',
        f'[ "$(nvidia-smi -L | grep -c "^GPU ")" -eq {target.gpus} ] || {{ nvidia-smi -L >&2; exit 96; }}',
        f'for mib in $({used}); do [ "$mib" -le 1024 ] || {{ {used} >&2; exit 97; }}; done',
        f'[ -z "$({apps})" ] || {{ {apps} >&2; exit 98; }}',
        "ulimit -l unlimited",
    ]
    return "\n".join([*lines, _logged(kind, ["python3", "-m", "dynamo.vllm", *args])])


def _logged(name: str, command: list[str]) -> str:
    """Return shell lines that write the command beside the logs and become it; $NAME in it is filled in there."""
    words = " ".join(f'"{word}"' if word.startswith("$") else shlex.quote(word) for word in command)
    status = '"$LOG_DIR/status"'
    line = shlex.quote(" ".join(command))
    return f"mkdir -p {status}\necho {line} >{status}/{name}.command\nexec {words}"


def _component(
    target: Target, name: str, kind: str, replicas: int, role: str, pod: Mapping[str, Any]
) -> dict[str, Any]:
    own = f"{target.part_of}.nvidia.com"
    found = {f"{own}/role": role}
    if target.disaggregated:
        found |= {f"{own}/topology": target.label, f"{own}/recipe": target.graph}
    else:
        found[f"{own}/workload"] = target.workload
    made: dict[str, Any] = {
        "name": name,
        "type": kind,
        "replicas": replicas,
        "podTemplate": {"metadata": {"labels": found}, "spec": dict(pod)},
    }
    if target.settings.runtime_version:
        made["runtimeVersionOverride"] = target.settings.runtime_version
    return made


def _placement(target: Target, frontend: bool) -> dict[str, Any]:
    settings = target.settings
    made: dict[str, Any] = {}
    if settings.pull_secret:
        made["imagePullSecrets"] = [{"name": settings.pull_secret}]
    if frontend:
        return made
    made["nodeSelector"] = {"nvidia.com/gpu.product": f"NVIDIA-{target.gpu}", **settings.node_selector}
    made["tolerations"] = [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        *(dict(each) for each in settings.tolerations),
    ]
    if target.runtime_class:
        made["runtimeClassName"] = target.runtime_class
    return made


def _mounts(target: Target) -> list[dict[str, Any]]:
    return [
        {"name": MODELS, "mountPath": target.cache["path"], "readOnly": True},
        {"name": ARTIFACTS, "mountPath": "/artifacts"},
        {"name": SCRATCH, "mountPath": "/tmp"},
    ]


def cache_volume(target: Target) -> dict[str, Any]:
    """Return the volume of a pod that holds the model; who only reads it says so where it is mounted."""
    return {"name": MODELS, "persistentVolumeClaim": {"claimName": target.cache["claim"]}}


def _volumes(target: Target) -> list[dict[str, Any]]:
    artifacts: dict[str, Any] = {"name": ARTIFACTS, "emptyDir": {}}
    if target.settings.artifacts != "emptyDir":
        artifacts = {"name": ARTIFACTS, "persistentVolumeClaim": {"claimName": target.settings.artifacts}}
    return [cache_volume(target), artifacts, {"name": SCRATCH, "emptyDir": {}}]


def _object(version: str, kind: str, name: str, target: Target, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": target.settings.namespace, "labels": shared_labels(target)},
        "spec": dict(spec),
    }


def objects(target: Target) -> dict[str, dict[str, Any]]:
    """Return every object of a target by the name of its file; secrets are not among them."""
    made = {} if target.settings.existing_claim else {"10-model-cache.yaml": claim(target)}
    if not target.settings.existing_claim:
        made["20-model-download.yaml"] = download_job(target)
    made["30-model-validate.yaml"] = validate_job(target)
    made["40-graph.yaml"] = graph(target)
    return made


def described(target: Target) -> dict[str, Any]:
    """Return a target as plain data for the role: its names, what it is checked with, and every object."""
    return {
        "graph": target.graph,
        "namespace": target.settings.namespace,
        "model": target.model,
        "claim": target.cache["claim"],
        "smoke": dict(target.smoke),
        "port": int(target.frontend["port"]),
        "gpu": target.gpu,
        "total_gpus": target.total_gpus,
        "notes": list(target.notes),
        "secrets": [each for each in (target.settings.pull_secret, target.settings.token_secret) if each],
        "objects": objects(target),
    }
