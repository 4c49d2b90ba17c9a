# SPDX-License-Identifier: Apache-2.0
"""From a checked plan to what each rank's container runs.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Where a model's directory appears inside the container, as in the published commands [S0].
CONTAINER_ROOT = "/root/.cache/huggingface"


def rank_options(plan: Mapping[str, Any], host: str, api_host: str) -> tuple[dict[str, Any], list[str]]:
    """Return the whole set of ``vllm serve`` options of one rank, and what contradicts the engine.

    :param plan: ``gb10_plan``.
    :param host: the member whose rank is wanted.
    :param api_host: the address on which the API listens on the head.
    """
    spec = plan["spec"]
    rank = plan["members"].index(host)
    own = {
        "served-model-name": spec["served_name"],
        "host": api_host,
        "port": spec["ports"]["api"],
    }
    errors = [
        f"model_spec.serve must not hold '{name}': it comes from model_spec.{source}."
        for name, source in (
            ("served-model-name", "served_name"),
            ("port", "ports.api"),
            ("model", "repo"),
            ("nnodes", "nodes"),
            ("node-rank", "nodes"),
            ("master-addr", "engine"),
            ("master-port", "ports.master"),
            ("headless", "engine"),
            ("api-key", "env (as the vaulted gb10_api_key)"),
        )
        if name in spec["serve"]
    ]
    options = {**own, **spec["serve"]}
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


def entry_arguments(plan: Mapping[str, Any], host: str, serve_args: Sequence[str]) -> list[str]:
    """Return the arguments of the container's first process (engine_entry.py) for one rank."""
    spec = plan["spec"]
    rank = plan["members"].index(host)
    require = ["--require-env", ",".join(spec["required_env"])] if spec["required_env"] else []
    serve = ["--", "vllm", "serve", f"{CONTAINER_ROOT}/{spec['repo']}", *serve_args]
    if not plan["multi_node"] or spec["engine"] == "native":
        return ["serve", *require, *serve]
    common = ["--address", plan["addresses"][host], "--port", str(spec["ports"]["ray"])]
    common += [f"--ray-arg={arg}" for arg in spec["ray_start_args"]]
    if rank == 0:
        return ["ray-head", *require, *common, "--nodes", str(spec["nodes"]), *serve]
    return ["ray-worker", *require, *common, "--head", plan["head_address"]]


def rank_ports(plan: Mapping[str, Any], host: str) -> list[int]:
    """Return the ports that must be free on this member before its container starts."""
    spec = plan["spec"]
    if plan["members"].index(host):
        return []
    ports = [spec["ports"]["api"]]
    if plan["multi_node"]:
        ports.append(spec["ports"]["ray"] if spec["engine"] == "ray" else spec["ports"]["master"])
    return ports


_PLAIN = re.compile(r"^[A-Za-z0-9_@:,./+=-]+$")


def systemd_quote(argument: str) -> str:
    """Return an argument as systemd's ExecStart= reads it back unchanged."""
    if _PLAIN.match(argument):
        return argument
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
