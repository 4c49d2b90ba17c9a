# SPDX-License-Identifier: Apache-2.0
"""playbooks/add_model.yml on an inventory of four boxes that have not arrived, with a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.action import add_model, model_file
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from tests.hub import LocalHub, serve
from tests.unit.repositories import HYBRID, MOE, SHARDS, THREE, repository

REPO = Path(__file__).parents[4]
HOSTS = """
all:
  children:
    gx10:
      children:
        head: {hosts: {a: {ansible_host: CHANGE_ME}}}
        workers: {hosts: {b: {ansible_host: CHANGE_ME}, c: {ansible_host: CHANGE_ME}, d: {ansible_host: CHANGE_ME}}}
"""
TOKEN = "hf_not_to_be_seen"
WRITE = "Write the model file"
IMAGES = {"newer": {"pull": "y", "vllm_version": "0.30.0"}}


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    drafting = repository(
        HYBRID, 70, model__safetensors__index__json={"weight_map": {"mtp.fc.weight": SHARDS[0], "a": SHARDS[1]}}
    )
    embedding = repository(MOE, 29, modules__json=[])
    more = {"org/gated": repository(MOE, 29), "org/drafting": drafting, "org/embedding": embedding}
    with serve({**THREE, **more}, {"org/gated": 401}, TOKEN) as server:
        yield server


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS, encoding="utf-8")
    return tmp_path


class Run:
    """One run of the playbook: results by task, and all that was printed."""

    def __init__(self, inventory: Path, hub: LocalHub, *options: str, **variables: Any) -> None:
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *options]
        given = {"weights_hub_endpoint": hub.url, **variables}
        env = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_NOCOLOR": "1",
            "HF_TOKEN": "",
        }
        done = subprocess.run(
            [*command, str(REPO / "playbooks" / "add_model.yml"), "-e", json.dumps(given)],
            env=env,
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
        )
        self.text = done.stdout + done.stderr
        report = json.loads(done.stdout[done.stdout.index("{") :])
        tasks = [task for play in report["plays"] for task in play["tasks"]]
        self.tasks = {task["task"]["name"].rpartition(" : ")[2]: task["hosts"].get("a", {}) for task in tasks}
        self.failed = [result["msg"] for result in self.tasks.values() if result.get("failed")]

    @property
    def report(self) -> list[str]:
        found: list[str] = self.tasks["Report what the model gets and what to type next"]["msg"]
        return found


def spec_of(path: Path) -> dict[str, Any]:
    """Return the model_spec of a file."""
    spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"]
    return spec


def test_one_of_each_kind(inventory: Path, hub: LocalHub) -> None:
    folder = inventory / "group_vars"
    check = Run(inventory, hub, "--check", "--diff", repo="org/Fits.One")
    assert (check.failed, check.tasks[WRITE]["changed"], folder.exists()) == ([], True, False)
    assert "served_name: org/Fits.One" in check.tasks[WRITE]["diff"]["after"]
    assert check.report[-2].startswith("Would be written to ")

    one = Run(inventory, hub, repo="org/Fits.One")
    spec = spec_of(folder / "model_fits_one.yml")
    assert (one.failed, spec["name"], spec["nodes"], spec["image"]) == ([], "fits.one", 1, "vllm-openai")
    assert [line.split(";")[0] for line in one.report[1:4]] == ["1 box: fits", "2 boxes: fits", "4 boxes: fits"]
    assert one.report[-1] == "Serve it: ansible-playbook swap-model.yml -e model=fits.one"

    four = Run(inventory, hub, repo="org/needs-four")
    port, spec = spec["ports"]["master"], spec_of(folder / "model_needs_four.yml")
    assert (four.failed, spec["nodes"], spec["serve"]["tensor-parallel-size"]) == ([], 4, 4)
    assert four.report[1].startswith("1 box: refused. ")
    assert spec["ports"]["master"] != port

    large = Run(inventory, hub, repo="org/too-large")
    assert len(large.failed) == 1
    assert "is too large for the 4 nodes of this inventory" in large.failed[0]
    assert sorted(path.name for path in folder.iterdir()) == ["model_fits_one.yml", "model_needs_four.yml"]
    assert not [path for path in hub.seen if path.endswith(".safetensors")]


def test_drafts_and_embeddings_pass_the_checks_of_every_model(inventory: Path, hub: LocalHub) -> None:
    folder = inventory / "group_vars"
    drafting = Run(inventory, hub, repo="org/drafting")
    assert drafting.failed == []
    assert spec_of(folder / "model_drafting.yml")["serve"]["speculative-config"]["method"] == "mtp"
    embedding = Run(inventory, hub, repo="org/embedding")
    assert embedding.failed == []
    assert spec_of(folder / "model_embedding.yml")["serve"]["runner"] == "pooling"
    assert embedding.report[1].startswith("1 box: fits; ")


def test_a_rerun_changes_nothing_and_never_what_the_owner_wrote(inventory: Path, hub: LocalHub) -> None:
    path = inventory / "group_vars" / "model_mine.yml"
    run = Run(inventory, hub, "-vvv", repo="org/gated", add_model_name="mine", weights_hub_token=TOKEN)
    first = path.read_text(encoding="utf-8")
    assert run.failed == []
    assert TOKEN not in run.text + first
    again = Run(inventory, hub, repo="org/gated", add_model_name="mine", weights_hub_token=TOKEN)
    assert (again.failed, again.tasks[WRITE]["changed"]) == ([], False)

    changed = first.replace("max-num-seqs: 8", "max-num-seqs: 2")
    path.write_text(changed, encoding="utf-8")
    run = Run(inventory, hub, repo="org/gated", add_model_name="mine", weights_hub_token=TOKEN)
    assert len(run.failed) == 1
    assert "is left as it is: it was changed by hand" in run.failed[0]
    assert path.read_text(encoding="utf-8") == changed


def test_an_option_that_vllm_does_not_have_is_refused_before_anything_is_written(
    inventory: Path, hub: LocalHub
) -> None:
    run = Run(inventory, hub, repo="org/Fits.One", add_model_overrides={"serve": {"max-num-seq": 4}})
    assert len(run.failed) == 1
    assert "max-num-seq" in run.failed[0]
    assert not (inventory / "group_vars").exists()


# --- in this process ------------------------------------------------------------------------------------


def work_out(hub: LocalHub, folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the result of the action, or raise its sentence."""
    args = {name: option.get("default") for name, option in argument_spec("add_model").items()}
    args |= {"node_facts": [{}] * 4, "images": IMAGES, "directory": str(folder), "endpoint": hub.url, "repo": ""}
    result: dict[str, Any] = {}
    add_model.ActionModule._work_out({**args, **changes}, result)
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo": "org/absent"}, "The hub has no org/absent at revision main"),
        ({"repo": "org/gated"}, "The hub refuses org/gated at revision main: No token was given (gb10_hf_token)"),
        ({"repo": "org/Fits.One", "nodes": 3}, "vLLM cannot split 32 attention heads over 3 ranks."),
        ({"repo": "org/Fits.One", "name": "../x"}, "add_model_name is '../x', but a name has lower-case"),
        ({"repo": "org/Fits.One", "name": "///"}, "for example 'my-model'"),
        ({"repo": "../../no-such-directory"}, "is no directory of the control node"),
        ({}, "repo is '', which is no <organisation>/<name> of a hub"),
        ({"repo": "org/Fits.One", "node_facts": []}, "The inventory has no node in its groups head and workers."),
        ({"repo": "org/Fits.One", "overrides": {"nots": []}}, "model_spec.nots is not a known key."),
        ({"repo": "org/Fits.One", "overrides": {"serve": {"chat-template": "{{ x }}"}}}, "would render as a template"),
    ],
)
def test_bad_input_is_one_sentence(hub: LocalHub, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(add_model.REFUSALS) as problem:
        work_out(hub, tmp_path, **changes)
    assert message in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_file_follows_what_is_asked_for_until_its_owner_changes_it(hub: LocalHub, tmp_path: Path) -> None:
    one, two = (work_out(hub, tmp_path, repo="org/Fits.One", nodes=nodes) for nodes in (1, 2))
    path = Path(one["path"])
    writer = model_file.ActionModule.__new__(model_file.ActionModule)
    writer._task = SimpleNamespace(check_mode=False)
    for content in (one["content"], two["content"]):
        result: dict[str, Any] = {}
        writer._write(path, content, False, result)
        assert (result["changed"], result["backup"], path.read_text(encoding="utf-8")) == (True, "", content)

    mine = two["content"] + "# mine\n"
    path.write_text(mine, encoding="utf-8")
    result = {}
    writer._task.check_mode = True
    writer._write(path, one["content"], True, result)
    assert (result["changed"], path.read_text(encoding="utf-8")) == (True, mine)
    assert (result["diff"]["before"], result["diff"]["after"]) == (mine, one["content"])
    writer._task.check_mode = False
    writer._write(path, one["content"], True, result)
    assert path.read_text(encoding="utf-8") == one["content"]
    assert Path(result["backup"]).read_text(encoding="utf-8") == mine


# --- parts ----------------------------------------------------------------------------------------------


def test_a_name_that_another_model_has(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "model_a_b.yml", tmp_path / "catalogue" / "model_a_b.yml"
    models = {path: {"name": "a-b", "repo": "org/a-b"}}
    assert add_model.name_error("a-b", "org/a-b", path, models) == ""
    assert add_model.name_error("other", "org/a-b", tmp_path / "model_other.yml", models) == ""
    assert "org/a-b has the name a.b already" in add_model.name_error("a.b", "org/else", path, models)
    assert "-e add_model_name=" in add_model.name_error("a-b", "org/a-b", elsewhere, models)


def test_files_that_ansible_alone_can_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "model_a.yml").write_text("model_spec: {name: a}\n", encoding="utf-8")
    (tmp_path / "model_b.yaml").write_text("model_spec: !vault x\n", encoding="utf-8")
    (tmp_path / "model_c.yml").write_text("[]\n", encoding="utf-8")
    assert add_model.other_models([str(tmp_path), str(tmp_path / "absent")]) == {
        (tmp_path / "model_a.yml").resolve(): {"name": "a"}
    }


def test_the_memory_of_nodes_that_answered_and_of_those_that_did_not() -> None:
    facts: list[dict[str, Any]] = [
        {"node": {"memory_gib": {"total": 119.2}}},
        {"unreachable": True},
        {},
        {"skipped": True},
    ]
    assert add_model.memory_of(facts, 0.0) == [119.2, None, None, None]
    assert add_model.memory_of(facts, 60.0) == [60.0] * 4
