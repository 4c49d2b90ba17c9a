# SPDX-License-Identifier: Apache-2.0
"""A lab of 1 to 8 nodes with the stand-in engine (lab/standin) as a site for site.yml, and two models for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.swap import BenchError

REPO: Final = Path(__file__).resolve().parents[1]
#: The two models of the lab whose files the stand-in serves, and how: a run swaps between them.
MODELS: Final = {"tiny-qwen3": "native", "tiny-nemotronh": "ray"}
FIRST, SECOND = MODELS


def lab_name(nodes: int) -> str:
    """Return the name of the lab of this size."""
    return f"converge-{nodes}"


def model(name: str, nodes: int) -> dict[str, Any]:
    """Return the description of one of the models for this many nodes."""
    spec = {
        "name": name,
        "repo": f"gb10-lab/{name}",
        "served_name": f"lab/{name}",
        "size_gib": 0.001,
        "nodes": nodes,
        "image": "stand-in",
        "shm_size": "64m",
        "serve": {"tensor-parallel-size": nodes, "max-model-len": 4096, "kv-cache-memory-bytes": 67108864},
        "geometry": {
            "architecture": "Qwen3ForCausalLM",
            "layers": 4,
            "hidden_size": 64,
            "vocab_size": 320,
            "max_position_embeddings": 8192,
            "attention": {"layers": 4, "heads": 8, "kv_heads": 8, "head_dim": 16},
        },
        "memory": {"floor_gib": 0.5},
    }
    if nodes > 1:
        spec["engine"] = MODELS[name]
    return {"model_spec": spec}


def variables(lab_dir: Path, repo: Path) -> dict[str, Any]:
    """Return what differs from inventories/lab: where things are, and the stand-in in place of vLLM."""
    return {
        "gb10_lab_dir": str(lab_dir),
        "gb10_source_root": str(repo / ".lab/models"),
        "gb10_wheels_dir": str(repo / ".lab/standin"),
        "engine_config_check": False,  # the stand-in has vLLM's command line and no configuration behind it
        "image_imports": ["vllm", "ray"],
        "gb10_images": {
            "stand-in": {
                "base": "gb10/base",
                "base_archive": str(repo / ".lab/cache/base.tar"),
                "python": "python3",
                "venv_args": [],
                "vllm_version": "0.32.0+cpu",
                "steps": [
                    {
                        "name": "stand-in",
                        "wheels": ["vllm-0.32.0+cpu-py3-none-any.whl"],
                        "pip_args": ["--no-index", "--no-deps"],
                    }
                ],
                "assertions": {"vllm": "0.32.0+cpu"},
            }
        },
    }


def write_site(lab_dir: Path, nodes: int, repo: Path = REPO) -> Path:
    """Write the inventory of the lab in this directory, and return it: that of inventories/lab with the stand-in."""
    site = lab_dir / "site"
    shutil.rmtree(site, ignore_errors=True)
    shared = repo / "inventories/lab"
    shutil.copytree(shared / "group_vars/gx10", site / "group_vars/gx10")
    shutil.copy(shared / "model.constructed.yml", site)
    hosts = yaml.safe_load((lab_dir / "inventory.yml").read_text(encoding="utf-8"))
    hosts["all"]["vars"] = {"model": FIRST}
    documents = {
        "hosts.yml": hosts,
        # Read after the other files of the group.
        "group_vars/gx10/stand_in.yml": variables(lab_dir, repo),
        **{f"group_vars/model_{name.replace('-', '_')}.yml": model(name, nodes) for name in MODELS},
    }
    for name, document in documents.items():
        (site / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return site


def run_module(words: Sequence[str]) -> None:
    """Run a module of the lab with its output on the terminal.

    :raises BenchError: when it fails.
    """
    done = subprocess.run([sys.executable, "-m", *words], cwd=REPO, check=False)
    if done.returncode:
        raise BenchError(f"`python -m {' '.join(words)}` ended with {done.returncode}; see above")


def bring_up(nodes: int) -> Path:
    """Bring up the lab with what the image and the models are made of, and return its inventory.

    :raises BenchError: when a part of it fails.
    """
    name = lab_name(nodes)
    rates = ("--fabric-rate", "10gbit", "--mgmt-rate", "1gbit")
    for words in (("lab", "up", "--name", name, "--nodes", str(nodes), *rates), ("lab.standin",), ("lab.models",)):
        run_module(words)
    return write_site(REPO / ".lab" / name, nodes)


def take_down(nodes: int) -> None:
    """Remove the lab.

    :raises BenchError: when that fails.
    """
    run_module(("lab", "down", "--name", lab_name(nodes)))
