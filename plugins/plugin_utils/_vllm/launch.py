# SPDX-License-Identifier: Apache-2.0
"""From a checked plan to what each rank's container runs.  Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import NAMES

#: Where a model's directory appears inside the container, as in the published commands [S0].
CONTAINER_ROOT = "/root/.cache/huggingface"
#: In place of an organisation, for what was made here and not downloaded.
PREPARED = "gb10-prepared"
#: Where the container that makes data writes (_weights/prepared.py).
PREPARED_OUTPUT = "/gb10-output"
#: Addresses to listen on that 127.0.0.1 leads to, where status, doctor, watch and the proof of a start ask the API.
ON_LOOPBACK = ("0.0.0.0", "::", "127.0.0.1", "localhost")
#: What a model needs of the weights root.
KINDS = ("model", "drafter", "prepared")

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def rank_options(
    plan: Mapping[str, Any], host: str, api_host: str, api_port: int = 0, taken: Mapping[str, int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return all ``vllm serve`` options of one rank, and what contradicts the engine.

    :param api_host: the address on which the API listens on the head.
    :param api_port: the port there behind a proxy; 0 for ``ports.api``, which is the proxy's otherwise.
    :param taken: ports of the head on which this collection listens itself, by the variable that sets each.
    """
    spec = plan["spec"]
    rank = plan["members"].index(host)
    own = {
        "served-model-name": spec["served_name"],
        "host": api_host,
        "port": api_port or spec["ports"]["api"],
    }
    errors = [
        f"model_spec.serve must not hold '{name}': it comes from model_spec.{source}."
        for name, source in NAMES["set_elsewhere"].items()
        if name in spec["serve"]
    ]
    options = {**own, **spec["serve"]}
    errors += [
        f"{variable} is {port}, and so is model_spec.ports.{name}: each needs a port of its own."
        for variable, port in (taken or {}).items()
        for name in _ports_in_use(plan)
        if port == spec["ports"][name]
    ]
    errors += _behind_proxy_errors(spec) if api_port else _direct_errors(str(options["host"]))
    speculation, draft_errors = speculative_config(plan)
    errors += draft_errors
    if speculation is not None:
        options["speculative-config"] = speculation
    backend = spec["serve"].get("distributed-executor-backend")
    if not plan["multi_node"]:
        if backend == "ray":
            errors.append("model_spec.serve.distributed-executor-backend is 'ray', but one node needs no Ray.")
        return options, errors
    wanted = {"ray": "ray", "native": "mp"}[spec["engine"]]
    if backend not in (None, wanted):
        errors.append(
            f"model_spec.serve.distributed-executor-backend is '{backend}', "
            f"but engine '{spec['engine']}' needs '{wanted}'."
        )
    options["distributed-executor-backend"] = wanted
    if spec["engine"] == "native":
        options.update(
            {
                "nnodes": spec["nodes"],
                "node-rank": rank,
                "master-addr": plan["head_address"],
                "master-port": spec["ports"]["master"],
            }
        )
        if rank:
            options["headless"] = True
            for name in ("host", "port"):
                options.pop(name)
    return options, errors


def _ports_in_use(plan: Mapping[str, Any]) -> list[str]:
    """Return the names of the ports on which the head of this launch listens; one node has no rendezvous."""
    engine = "ray" if plan["spec"]["engine"] == "ray" else "master"
    return ["api", engine] if plan["multi_node"] else ["api"]


def _behind_proxy_errors(spec: Mapping[str, Any]) -> list[str]:
    if "host" not in spec["serve"]:
        return []
    return [
        "model_spec.serve must not hold 'host': behind the proxy (edge_proxy) the engine listens on loopback, and "
        "engine_api_host says where clients reach it. Remove it, or set edge_proxy: false."
    ]


def _direct_errors(address: str) -> list[str]:
    if address in ON_LOOPBACK:
        return []
    return [
        f"engine_api_host (or 'host' in model_spec.serve) is {address}: without the proxy the engine listens there "
        "alone, and the checks of its node, which ask on 127.0.0.1, do not reach it. With edge_proxy: true the proxy "
        "listens on that address and on 127.0.0.1."
    ]


def model_path(plan: Mapping[str, Any]) -> str:
    """Return where a rank's container sees the weights: the node's copy is mounted there, and vLLM is given it."""
    return f"{CONTAINER_ROOT}/{plan['spec']['repo']}"


def speculative_config(plan: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return speculative-config with the draft model's mount as its model, or None to leave it as it is; and errors.

    Engines run without the hub, so a repository that is not on the nodes is refused here and not at the start.
    """
    spec = plan["spec"]
    written, drafter = spec["serve"].get("speculative-config"), spec.get("drafter") or {}
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except (ValueError, RecursionError):
            written = None
    if not isinstance(written, Mapping):
        if drafter:
            return None, [
                "model_spec.drafter is given, but model_spec.serve.speculative-config does not say how it is used; "
                "for example {method: dflash, num_speculative_tokens: 7}."
            ]
        return None, []
    named = str(written.get("model") or "")
    if not drafter:
        if _REPOSITORY.fullmatch(named):
            return None, [
                f"model_spec.serve.speculative-config.model is '{named}', a repository that no node has: engines run "
                f"without the hub. Give model_spec.drafter {{repo: {named}, size_gib: ...}}, or the path of a "
                f"directory inside {model_path(plan)}."
            ]
        return None, []
    errors = []
    if "revision" in written:
        errors.append(
            "model_spec.serve.speculative-config must not hold 'revision': it comes from model_spec.drafter.revision."
        )
    path = f"{CONTAINER_ROOT}/{drafter['repo']}"
    if named not in ("", drafter["repo"], path):
        errors.append(
            f"model_spec.serve.speculative-config.model is '{named}', but model_spec.drafter.repo is "
            f"'{drafter['repo']}': leave the first out."
        )
    return {**written, "model": path}, errors


def mounts(plan: Mapping[str, Any], weights_root: str) -> list[dict[str, Any]]:
    """Return what a rank's container mounts read-only of the weights root; see engine_mounts.yml."""
    spec = plan["spec"]
    found = {f"{weights_root}/{spec['repo']}": model_path(plan)}
    if spec.get("drafter"):
        repo = spec["drafter"]["repo"]
        found[f"{weights_root}/{repo}"] = f"{CONTAINER_ROOT}/{repo}"
    for data in spec.get("prepared_data") or []:
        found[f"{weights_root}/{prepared_repo(spec, data)}"] = data["mount"]
    return [
        {"source": source, "target": target, "arguments": ["--volume", f"{source}:{target}:ro"]}
        for source, target in found.items()
    ]


def trees(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what of the weights root a model needs; see model_trees.yml."""
    spec = plan.get("spec")
    if not spec:
        return []
    found = [_tree(spec, "model", spec["serve"])]
    if spec.get("drafter"):
        # A draft model shares the tokenizer of its model, and its repository need not have one.
        formats = {key: value for key, value in spec["serve"].items() if key == "load-format"}
        found.append(_tree(spec["drafter"], "drafter", {**formats, "skip-tokenizer-init": True}))
    for data in spec.get("prepared_data") or []:
        made = {"repo": prepared_repo(spec, data), "revision": "", "size_gib": data["size_gib"]}
        found.append(_tree(made, "prepared", {}))
    return found


def prepared(plan: Mapping[str, Any], image: Mapping[str, Any], weights_root: str) -> list[dict[str, Any]]:
    """Return how each of a model's prepared data is made; see prepared_trees.yml.

    Its revision names everything that it is made from, so that a new command, image or revision makes it anew.
    """
    spec = plan["spec"]
    found = []
    for data in spec.get("prepared_data") or []:
        words = {"{model}": model_path(plan), "{output}": PREPARED_OUTPUT}
        make = {
            "command": [_filled(word, words) for word in data["command"]],
            "env": {name: _filled(str(value), words) for name, value in data["env"].items()},
            "mounts": {f"{weights_root}/{spec['repo']}": model_path(plan)},
            "size_gib": data["size_gib"],
        }
        origin = {**make, "image": image["fingerprint"], "repo": spec["repo"], "revision": spec["revision"]}
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        repo = prepared_repo(spec, data)
        found.append({"repo": repo, "revision": digest[:16], "make": {**make, "image": image["tag"]}})
    return found


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _tree(source: Mapping[str, Any], kind: str, serve: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: source[key] for key in ("repo", "revision", "size_gib")}
    return {**found, "kind": kind, "serve": dict(serve)}


def trees_beside(plan: Mapping[str, Any], repo: str, kinds: Sequence[str] = KINDS) -> list[dict[str, Any]]:
    """Return repo and size_gib of what a model needs of the weights root besides one of them; see trees_beside.yml."""
    return [
        {"repo": each["repo"], "size_gib": each["size_gib"]}
        for each in trees(plan)
        if each["repo"] != repo and each["kind"] in kinds
    ]


def prepared_repo(spec: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return the directory of prepared data below the weights root, which is also its name in messages."""
    return f"{PREPARED}/{spec['name']}.{data['name']}"


def entry_arguments(
    plan: Mapping[str, Any], host: str, serve_args: Sequence[str], watch: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the arguments of the container's first process (`_engine.entry`) for one rank.

    :param watch: how the ranks stay together and when a start is aborted: api_host, api_port, tether_port,
        tether_key, silence_seconds, stall_seconds, floor_gib, same_env, serving_file; without it they do not and it
        is not.
    """
    spec = plan["spec"]
    rank = plan["members"].index(host)
    watch = watch or {}
    common = ["--model", spec["name"], "--rank", str(rank)]
    common += ["--members", ",".join(f"{node}={plan['addresses'][node]}" for node in plan["members"])]
    if spec["required_env"]:
        common += ["--require-env", ",".join(spec["required_env"])]
    if plan["multi_node"] and watch.get("tether_port"):
        common += ["--tether-port", str(watch["tether_port"]), "--tether-key", watch["tether_key"]]
        common += ["--silence-seconds", str(watch["silence_seconds"])]
        common += ["--same-env", ",".join(sorted(watch["same_env"]))]
    if watch.get("serving_file"):
        common += ["--serving-file", watch["serving_file"]]
    if float(watch.get("floor_gib") or 0):
        common += ["--floor-gib", str(watch["floor_gib"])]
    if rank == 0 and watch.get("api_host"):
        address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(watch["api_host"], watch["api_host"])
        common += ["--health", f"http://{address}:{watch.get('api_port') or spec['ports']['api']}/health"]
    serve = ["--", "vllm", "serve", model_path(plan), *serve_args]
    if not plan["multi_node"] or spec["engine"] == "native":
        return ["serve", *common, *serve]
    common += ["--port", str(spec["ports"]["ray"])]
    if watch.get("stall_seconds"):
        common += ["--stall-seconds", str(watch["stall_seconds"])]
    common += [f"--ray-arg={arg}" for arg in spec["ray_start_args"]]
    return ["ray-head", *common, *serve] if rank == 0 else ["ray-worker", *common]


def rank_ports(plan: Mapping[str, Any], host: str, tether_port: int = 0, api_port: int = 0) -> list[int]:
    """Return the ports that must be free on this member before its container starts.

    :param tether_port: where the ranks hold together on the head; 0 when they do not.
    :param api_port: the API's port behind a proxy; 0 for ``ports.api``.
    """
    spec = plan["spec"]
    if plan["members"].index(host):
        return []
    ports = [spec["ports"][name] for name in _ports_in_use(plan)]
    if api_port:
        ports[0] = api_port
    return [*ports, tether_port] if plan["multi_node"] and tether_port else ports


_PLAIN = re.compile(r"[A-Za-z0-9_@:,./+=-]+")


def systemd_quote(argument: str) -> str:
    """Return an argument as systemd's ExecStart= reads it back unchanged, on one line whatever it holds."""
    if _PLAIN.fullmatch(argument):
        return argument
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", escaped)
    return f'"{escaped}"'


_SECRET = re.compile(r"^(\w*(?:key|token|secret|password)\w*=).+$", re.IGNORECASE | re.MULTILINE)


def masked(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return files to be shown: in those with ``secret`` set, each variable whose name says key, token, secret or
    password has asterisks as its value.

    :param files: items of ``gb10.cluster.node_files``; the given ones are not changed.
    """
    return [
        {**each, "content": _SECRET.sub(r"\1********", each["content"])} if each.get("secret") else dict(each)
        for each in files
    ]
