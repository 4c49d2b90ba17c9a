# SPDX-License-Identifier: Apache-2.0
"""Real runs: what is refused before any node is asked, what an override shows, what a rendering gives away."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import names_from_files
from tests.hub import serve
from tests.unit.repositories import MOE, repository

API_KEY = "an-api-key-that-nobody-may-see"

GROUP_VARS = Path(__file__).resolve().parents[3] / "playbooks" / "group_vars"
MODELS = names_from_files(map(str, GROUP_VARS.glob("model_*.yml")))


def sentences(output: str) -> str:
    """Return a run's output with its line breaks and indentation undone."""
    return re.sub(r"\s+", " ", output)


@pytest.fixture(scope="module")
def addressed(site: Callable[[], Any]) -> Any:
    """Return a site whose nodes have addresses."""
    made = site()
    made.addresses()
    return made


def overrides(**given: Any) -> tuple[str, str]:
    """Return the arguments that override a model for one run."""
    return "-e", json.dumps({"model_overrides": given})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ("-e", "model=nemotron-utlra"),
            f"Model 'nemotron-utlra' is not known. Did you mean 'nemotron-ultra'? Known: {', '.join(MODELS)}.",
        ),
        (
            ("-e", "model=qwen397", *overrides(serv={"max-num-seqs": 4})),
            "model_spec.serv is not a known key. Did you mean 'serve'?",
        ),
        (
            ("-e", "model=qwen397", *overrides(image="vllm-node-mino", mods=["gpu-mem-util"])),
            "model_spec.image 'vllm-node-mino' is not in gb10_images. Did you mean 'vllm-node-mimo'? "
            "Known: dspark-vllm-gx10, spark-vllm-b12x, vllm-glm53-flash, vllm-node, vllm-node-mimo, vllm-node-s1, "
            "vllm-node-tf5, vllm-openai, vllm-openai-0.24, vllm-openai-0.27, vllm-openai-0.28, vllm-ray. "
            "model_spec.mods has 'gpu-mem-util', which is no mod. Did you mean 'gpu-mem-util-gb'?",
        ),
        (
            ("-e", "model=nemotron-ultra", *overrides(serve={"tensor-parallel-size": 8}, nodes=8)),
            "Model 'nemotron-ultra' needs 8 nodes and this cluster has 4 (gx10-1, gx10-2, gx10-3, gx10-4): 4 short.",
        ),
        (
            ("-e", "model=qwen397", *overrides(serve={"max-model-len": 300000})),
            "model_spec.serve.max-model-len is 300000, but model_spec.geometry.max_position_embeddings is 262144",
        ),
    ],
    ids=["unknown-model", "unknown-key", "unknown-image-and-mod", "too-few-nodes", "too-long"],
)
def test_refused_by_the_plan_without_a_node_being_asked(
    addressed: Any, arguments: tuple[str, ...], wanted: str
) -> None:
    run = addressed.run("plan.yml", *arguments)
    assert run.returncode != 0
    assert wanted in sentences(run.output), run.output
    assert not run.contacted


def test_placeholders_are_refused_by_the_plan(site: Callable[[], Any]) -> None:
    run = site().run("plan.yml", "-e", "model=qwen397")
    assert run.returncode != 0
    assert sentences(run.output).count("ansible_host is still the placeholder 'CHANGE_ME'") >= 4, run.output
    assert not run.contacted


@pytest.mark.parametrize("playbook", ["status.yml", "stop.yml"])
def test_a_placeholder_is_never_contacted(site: Callable[[], Any], playbook: str) -> None:
    run = site().run(playbook)
    assert run.returncode != 0
    assert "gx10-1: ansible_host is still the placeholder 'CHANGE_ME'." in sentences(run.output), run.output
    assert not run.contacted


#: Actions that read and write on the control node alone.
ON_THE_CONTROL_NODE = {"gb10.cluster.recipe", "gb10.cluster.model_file", "ansible.builtin.debug"}


def test_every_playbook_checks_the_addresses_first() -> None:
    for path in sorted((GROUP_VARS.parent).glob("*.yml")):
        plays = yaml.safe_load(path.read_text(encoding="utf-8"))
        if all(play.get("hosts") in ("localhost", "gb10_init_boxes") for play in plays):
            continue  # it contacts no node of the inventory
        first = plays[0]
        imported = first.get("ansible.builtin.import_playbook")
        kinds = ("ansible.builtin.import_role", "ansible.builtin.include_role")
        done = [task for task in first.get("tasks", []) if "ansible.builtin.meta" not in task]
        roles = [task[kind] for task in done[:1] for kind in kinds if kind in task]
        if first.get("tasks") and all("gb10.cluster.placeholders" in str(each.get("when")) for each in first["tasks"]):
            continue  # it goes on without the nodes
        if first.get("tasks") and all(ON_THE_CONTROL_NODE & set(task) for task in first["tasks"]):
            continue
        # What renders, chooses or plans contacts no placeholder; the others begin with such a one, or with the lease.
        assert imported in ("plan.yml", "validate.yml", "lease.yml") or (
            roles
            and roles[0]["name"] == "gb10.cluster.model"
            and roles[0]["tasks_from"] in ("choose", "inventory", "plan", "render")
        ), f"{path.name} contacts nodes before it has checked their addresses"


def test_an_override_is_merged_and_shown(addressed: Any) -> None:
    more = overrides(serve={"max-num-seqs": 4, "speculative-config": None, "compilation-config": {"mode": 3}})
    run = addressed.run("plan.yml", "-e", "model=nemotron-ultra", *more)
    assert run.returncode == 0, run.output
    said = sentences(run.output)
    for line in (
        "serve.max-num-seqs: 6 -> 4",
        'serve.speculative-config: {"method": "nemotron_h_mtp", "num_speculative_tokens": 3} -> nothing',
        "serve.compilation-config.mode: nothing -> 3",
    ):
        assert line in said, run.output
    assert len(re.findall(r" -> ", said)) == 3, "only what was overridden is shown"
    assert "corrupts the output" not in said, "without speculation there is nothing to warn about"


def test_a_published_pair_with_a_known_risk_is_served_with_a_warning(addressed: Any) -> None:
    run = addressed.run("plan.yml", "-e", "model=nemotron-ultra")
    assert run.returncode == 0, run.output
    said = sentences(run.output)
    assert "[WARNING]: nemotron-ultra: speculative decoding with prefix caching corrupts the output" in said


def test_an_override_reaches_the_rendered_command(site: Callable[[], Any], tmp_path: Path) -> None:
    env = {"RAY_memory_monitor_refresh_ms": "250", "NCCL_NET": "Socket"}
    more = overrides(serve={"max-model-len": 524288, "max-cudagraph-capture-size": None}, env=env)
    run = site().run("render.yml", "-e", "model=nemotron-super", "-e", f"model_render_dir={tmp_path / 'out'}", *more)
    assert run.returncode == 0, run.output
    script = (tmp_path / "out" / "gx10-1" / "vllm-serve.sh").read_text(encoding="utf-8")
    assert "--max-model-len 524288" in script
    assert "--max-cudagraph-capture-size" not in script, "null takes an option out"
    for node in ("gx10-1", "gx10-2"):
        text = (tmp_path / "out" / node / "etc" / "gb10" / "engine" / "nemotron-super.env").read_text(encoding="utf-8")
        assert {"RAY_memory_monitor_refresh_ms=250", "NCCL_NET=Socket", "NCCL_CROSS_NIC=1"} <= set(text.splitlines())


def test_rendering_asks_no_node_and_gives_no_secret_away(rendered: Callable[[str], Any]) -> None:
    where, run = rendered("nemotron-ultra")
    assert not run.contacted
    assert API_KEY not in run.output
    files = [path for path in where.rglob("*") if path.is_file()]
    assert len(files) == 4 * 6 + 1, "six files a node, and the head's vllm serve"
    for path in files:
        assert API_KEY.encode() not in path.read_bytes(), path
        env = path.suffix == ".env"
        assert not env or re.search(r"^VLLM_API_KEY=\*{8}$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not env or path.stat().st_mode & 0o077 == 0, "as closed as it will be on the node"


def test_add_a_model_as_the_page_says(site: Callable[[], Any], tmp_path: Path) -> None:
    text = (GROUP_VARS.parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    section = text[text.index("## Add a model") :].split("\n## ")[0]
    commands = re.findall(r"^    ansible-playbook (?:playbooks/)?(\S+) (.*)$", section, re.MULTILINE)
    assert [name for name, _words in commands] == ["add_model.yml", "swap-model.yml", "render.yml", "memory.yml"]
    add, _swap, render, memory = [words.replace("-i inventories/spark4 ", "").split() for _name, words in commands]
    made, out = site(), tmp_path / "out"
    with serve({"organisation/name": repository(MOE, 29)}) as hub:
        run = made.run("add_model.yml", *add, "-e", f"weights_hub_endpoint={hub.url}")
    assert run.returncode == 0, run.output
    assert not run.contacted
    run = made.run(
        "render.yml", *(word.replace("/tmp/my-model", str(out)).replace("my-model", "name") for word in render)
    )
    assert run.returncode == 0, run.output
    assert not run.contacted
    assert (out / "gx10-1" / "etc" / "systemd" / "system" / "vllm-name.service").is_file()
    run = made.run("memory.yml", *(word.replace("my-model", "name") for word in memory))
    assert "ansible_host is still the placeholder" in run.output, "the model is known, the nodes are not"


def test_the_names_of_the_release_before_still_work(site: Callable[[], Any], tmp_path: Path) -> None:
    run = site().run("render.yml", "-e", "model=nemotron-nano", "-e", f"render_dir={tmp_path / 'out'}")
    assert run.returncode == 0, run.output
    assert (tmp_path / "out" / "gx10-1" / "docker-run.sh").is_file()


def test_values_of_the_command_line_arrive_with_their_type(site: Callable[[], Any], tmp_path: Path) -> None:
    words = "engine_memory_floor_gib=1.5 engine_drop_caches=false engine_require_rdma=no engine_stop_seconds=90".split()
    given = [*overrides(served_name="org/100%h"), *(each for word in words for each in ("-e", word))]
    run = site().run("render.yml", "-e", "model=nemotron-super", "-e", f"model_render_dir={tmp_path}", *given)
    assert run.returncode == 0, run.output
    node = tmp_path / "gx10-1"
    launch = json.loads((node / "etc/gb10/engine/nemotron-super.json").read_text(encoding="utf-8"))
    assert launch["memory_floor_gib"] == 1.5
    assert launch["drop_caches_seconds"] == 0, "false is not true because it is text"
    assert launch["require_rdma"] is False
    unit = (node / "etc/systemd/system/vllm-nemotron-super.service").read_text(encoding="utf-8")
    assert "TimeoutStopSec=120\n" in unit
    assert "Description=vLLM rank 0 of org/100%%h\n" in unit, "systemd expands a single percent sign"


def test_rendering_needs_a_directory(site: Callable[[], Any]) -> None:
    run = site().run("render.yml", "-e", "model=nemotron-nano")
    assert run.returncode != 0
    assert "model_render_dir is required: pass -e model_render_dir=DIR" in run.output


def test_a_bad_option_is_refused_while_rendering(site: Callable[[], Any], tmp_path: Path) -> None:
    more = overrides(serve={"gpu-memory-util": 0.9})
    run = site().run("render.yml", "-e", "model=nemotron-nano", "-e", f"model_render_dir={tmp_path / 'out'}", *more)
    assert run.returncode != 0
    assert "gpu-memory-utilization" in run.output
    assert not (tmp_path / "out").exists(), "nothing is written for an engine that would not start"


LOCAL = ("-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}")


def test_memory_refuses_with_figures_and_what_to_change(addressed: Any) -> None:
    # A share of 0.01 starts nowhere [S4]; the nodes are this machine, whatever its size.
    more = overrides(serve={"gpu-memory-utilization": 0.01})
    run = addressed.run("memory.yml", "-e", "model=nemotron-nano", *LOCAL, *more)
    assert run.returncode != 0
    assert "nemotron-nano does not fit on this cluster. gx10-1 (refused):" in sentences(run.output), run.output
    assert "Nothing is left for the cache" in run.output
    off = addressed.run("memory.yml", "-e", "model=nemotron-nano", "-e", "model_memory_check=false", *LOCAL, *more)
    assert off.returncode == 0, off.output


def test_memory_does_not_guess_a_shape(addressed: Any, tmp_path: Path) -> None:
    # Neither a geometry, nor config.json on the node, nor a measured cache: it may come with the weights.
    gone = overrides(geometry=None, repo="gb10-lab/shapeless", expected={"memory": None})
    command = ["memory.yml", "-e", "model=nemotron-nano", *LOCAL, "-e", f"gb10_weights_root={tmp_path}", *gone]
    before = addressed.run(*command)
    assert before.returncode == 0, before.output
    assert "config.json cannot be read on this node: No such file" in sentences(before.output), before.output
    assert "The check is done again when they are there." in sentences(before.output)

    (tmp_path / "gb10-lab" / "shapeless").mkdir(parents=True)
    (tmp_path / "gb10-lab" / "shapeless" / "model.safetensors").write_bytes(b"0")
    run = addressed.run(*command)
    assert run.returncode != 0
    assert "nemotron-nano cannot be sized. gx10-1 is the tightest of" in sentences(run.output) or (
        "nemotron-nano cannot be sized. gx10-1 (unknown)" in sentences(run.output)
    ), run.output
    assert "config.json cannot be read on this node: No such file" in sentences(run.output), run.output


def test_memory_goes_on_with_a_measured_cache_and_says_what_is_not_known(addressed: Any) -> None:
    # The pool is small, so that the machine of the test has room for it, whatever its size.
    point = {"pool_gib": 0.125, "tokens": 65536, "source": "measured for the test"}
    serve = {"gpu-memory-utilization": None, "kv-cache-memory-bytes": 2**27, "max-model-len": 8192}
    more = overrides(geometry=None, size_gib=0.01, serve=serve, expected={"memory": None, "kv_cache": [point]})
    run = addressed.run("memory.yml", "-e", "model=nemotron-nano", *LOCAL, *more)
    text = sentences(run.output)
    assert "holds about 65536 tokens: measured were 65536 tokens in 0.12 GiB a rank (measured for the test)" in text
    assert "config.json cannot be read on this node" in text
    assert run.returncode == 0, run.output


def test_the_models_of_an_inventory_are_printed(addressed: Any) -> None:
    run = addressed.run("models.yml", *LOCAL)
    assert run.returncode == 0, run.output
    assert "4 boxes, the smallest has" in run.output
    for model in MODELS:
        assert re.search(rf"^{model} ", run.output, re.MULTILINE), model
    run = addressed.run("models.yml", *LOCAL, "-e", "models_json=true")
    document = json.loads(run.output[run.output.index("\n{") if "\n{" in run.output else 0 :].split("\n}")[0] + "\n}")
    assert {each["name"] for each in document["models"]} == set(MODELS)
    assert len(document["nodes"]) == 4


def test_no_two_models_share_what_their_code_could_write(rendered: Callable[[str], Any]) -> None:
    """What a compiler or a kernel library keeps is code: a model's own must not run in another model's engine."""
    mounts: dict[str, set[str]] = {}
    for model in ("nemotron-ultra", "nemotron-super"):
        where, _run = rendered(model)
        unit = (where / "gx10-1" / "etc" / "systemd" / "system" / f"vllm-{model}.service").read_text(encoding="utf-8")
        found = re.findall(r"--volume[\s\\]+(/[^:\s]+):(\S+)", unit)
        assert found, unit
        mounts[model] = {source for source, target in found if not target.endswith(":ro")}
        assert [source for source in mounts[model] if source.endswith(f"/{model}") and "/cache/" in source], mounts
    assert mounts["nemotron-ultra"] & mounts["nemotron-super"] == set()
