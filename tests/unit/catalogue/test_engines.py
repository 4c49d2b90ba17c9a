# SPDX-License-Identifier: Apache-2.0
"""Every multi-node model of the catalogue with either engine, and the exact differences between the two."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe
from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import launch, model_checks, serve_files

GROUP_VARS = Path(__file__).resolve().parents[3] / "playbooks" / "group_vars"
SPECS = [
    yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"] for path in sorted(GROUP_VARS.glob("model_*.yml"))
]
MODELS = [spec["name"] for spec in SPECS if spec["nodes"] > 1]
WATCH = {
    "api_host": "0.0.0.0",
    "tether_port": 29600,
    "tether_key": "/etc/gb10/engine/tether.key",
    "silence_seconds": 30,
    "stall_seconds": 900,
    "same_env": ["A"],
}


def plan_of(written: dict[str, Any], engine: str) -> dict[str, Any]:
    """Return the plan of a model with an engine, on nodes of a made-up network."""
    spec, errors = ms.validate(ms.deep_merge(written, model_checks.engine_choice({}, engine)))
    assert not errors, errors
    members = [f"gx10-{number + 1}" for number in range(spec["nodes"])]
    return {
        "spec": spec,
        "members": members,
        "multi_node": True,
        "head_address": "192.168.100.1",
        "addresses": {host: f"192.168.100.{number + 1}" for number, host in enumerate(members)},
    }


def rendered(plan: dict[str, Any], images: dict[str, Any], host: str) -> list[str]:
    """Return the arguments of a rank's first process, each option of vLLM checked against its image's version."""
    spec = plan["spec"]
    recipe, errors = image_recipe.resolve(images, spec["image"])
    assert not errors, errors
    options, errors = launch.rank_options(plan, host, "0.0.0.0")
    assert not errors, errors
    versions = [str(recipe[key] or "") for key in ("vllm_version", "vllm_upstream")]
    args = serve_files.render(options, versions[0], spec["env"], spec["mods"], upstream=versions[1]).args
    return launch.entry_arguments(plan, host, args, WATCH)


def pairs(words: list[str]) -> list[tuple[str, ...]]:
    """Return options with their values."""
    found: list[tuple[str, ...]] = []
    for word in words:
        found = [*found, (word,)] if word.startswith("--") else [*found[:-1], (*found[-1], word)]
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_engines_differ_in_how_ranks_meet_and_in_nothing_else(model: str, images: dict[str, Any]) -> None:
    written = next(spec for spec in SPECS if spec["name"] == model)
    native, ray = plan_of(written, "native"), plan_of(written, "ray")
    ports, count = native["spec"]["ports"], native["spec"]["nodes"]
    for rank, host in enumerate(native["members"]):
        by_native, by_ray = rendered(native, images, host), rendered(ray, images, host)
        assert by_native[0] == "serve"
        assert by_ray[0] == ("ray-worker" if rank else "ray-head")
        ours, theirs = (words[: words.index("--") if "--" in words else None] for words in (by_native, by_ray))
        assert [each for each in pairs(theirs[1:]) if each not in pairs(ours[1:])] == [
            ("--port", str(ports["ray"])),
            ("--stall-seconds", "900"),
            *((f"--ray-arg={word}",) for word in ray["spec"]["ray_start_args"]),
        ]
        serve = by_native[by_native.index("--") + 1 :]
        meeting = [
            ("--distributed-executor-backend", "mp"),
            ("--nnodes", str(count)),
            ("--node-rank", str(rank)),
            ("--master-addr", "192.168.100.1"),
            ("--master-port", str(ports["master"])),
            *([("--headless",)] if rank else []),
        ]
        if rank:
            assert "--" not in by_ray, "with Ray only the head runs vllm serve"
            assert [each for each in pairs(serve[3:]) if each in meeting] == meeting
            assert not {"--host", "--port"} & {each[0] for each in pairs(serve[3:])}
            continue
        with_ray = pairs(by_ray[by_ray.index("--") + 4 :])
        with_native = pairs(serve[3:])
        assert [each for each in with_native if each not in with_ray] == meeting
        assert [each for each in with_ray if each not in with_native] == [("--distributed-executor-backend", "ray")]


def test_one_word_changes_the_engine_of_a_run(site: Callable[[], Any], tmp_path: Path) -> None:
    written = next(spec for spec in SPECS if spec["nodes"] > 1 and spec.get("engine", "ray") == "ray")
    where = tmp_path / "out"
    words = ("-e", f"model={written['name']}", "-e", "engine=native", "-e", f"model_render_dir={where}")
    run = site().run("render.yml", *words)
    assert run.returncode == 0, run.output
    assert "engine: " in run.output, "what the run changes is shown"
    for number in range(written["nodes"]):
        script = (where / f"gx10-{number + 1}" / "vllm-serve.sh").read_text(encoding="utf-8")
        assert f"--node-rank {number}" in script
        assert "--distributed-executor-backend mp" in script
    command = shlex.split((where / "gx10-1" / "docker-run.sh").read_text(encoding="utf-8"), comments=True)
    assert "ray-head" not in command


def test_an_engine_that_does_not_exist_is_refused(site: Callable[[], Any], tmp_path: Path) -> None:
    run = site().run("render.yml", "-e", f"model={MODELS[0]}", "-e", "engine=mpi", "-e", f"model_render_dir={tmp_path}")
    assert run.returncode != 0
    assert "native" in run.output
    assert not list(tmp_path.iterdir())
