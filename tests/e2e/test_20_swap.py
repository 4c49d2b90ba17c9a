# SPDX-License-Identifier: Apache-2.0
"""One model gives way to another, on another engine, and leaves nothing behind; a second operator waits meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.models import QWEN3_REPO, QWEN3_SENTENCE
from lab.runs import kill_with_all
from tests import hub
from tests.e2e import harness, registry
from tests.e2e.harness import HEAD, NODES, REPO
from tests.unit.repositories import GIB, THREE

FIRST = "tiny-qwen3"
SECOND = "tiny-nemotronh"
SERVED = "lab/tiny-nemotronh"
RECIPE = harness.REPO / "tests" / "e2e" / "tiny-recipe.yaml"
#: A model that the inventory does not have, in a repository of a hub.
ADDED = "tiny-added"
ADDED_REPO = "gb10-hub/tiny"
#: What the recipe names as its draft model.
DRAFTER = "gb10-lab/tiny-draft"
CONTAINER = "/root/.cache/huggingface"
DATA = {
    "name": "words",
    "command": ["sh", "-c", "sha256sum < {model}/config.json | cut -c -64 > {output}/digest"],
    "mount": "/data/words",
    "size_gib": 0.001,
}
LEASE = "/run/gb10/lease/deployment.json"
NFT = "nft list table inet gb10"


def lease() -> dict[str, Any]:
    """Return the lease of the deployment on the head; empty when there is none."""
    text = harness.node_exec(HEAD, f"cat {LEASE}", check=False).stdout
    return json.loads(text) if text else {}


def wait_for_the_end_of_the_lease() -> None:
    """Wait until a run that has ended has no lease any more: the process beside it ends the lease a moment later."""
    harness.wait_until("the end of the lease", lambda: not lease(), stall_s=300)


@contextmanager
def first_operator(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Swap to the second model in a process beside this one, and go on once it has the lease."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", harness.INVENTORY, "swap-model.yml"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "-e", f"model={SECOND}"],
            cwd=REPO, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        ) as run,
    ):  # fmt: skip
        try:
            harness.wait_until(
                "the lease of the first operator",
                # The lease of the run before may still be there.
                lambda: lease().get("process", {}).get("pid") == run.pid or run.poll() is not None,
                stall_s=600,
                progress=lambda: log.stat().st_size,
            )
            assert run.poll() is None, log.read_text()[-3000:]
            yield run
        finally:
            if run.poll() is None:
                kill_with_all(run.pid)


def test_what_the_image_itself_refuses_is_refused_while_the_first_model_serves_on() -> None:
    """A wrong architecture passes every table of ours; only the vLLM in the image knows that it has none such."""
    unit = f"vllm-{FIRST}.service"
    before = {node: harness.unit_state(node, unit)["ExecMainStartTimestampMonotonic"] for node in NODES}
    list_files = "ls -l --time-style=full-iso /etc/systemd/system/vllm-* /etc/gb10/engine"
    files = {node: harness.node_exec(node, list_files).stdout for node in NODES}
    overrides = {"serve": {"hf-overrides": {"architectures": ["NoSuchForCausalLM"]}}}

    result = harness.run("swap-model.yml", {"model": SECOND, "model_overrides": overrides}, ok=False)

    message = "\n".join(result.failed_messages())
    assert "vLLM says: Model architectures ['NoSuchForCausalLM'] are not supported for now." in message
    assert "Nothing was stopped or changed." in message
    assert harness.served_models() == ["lab/tiny-qwen3"]
    after = {node: harness.unit_state(node, unit)["ExecMainStartTimestampMonotonic"] for node in NODES}
    assert after == before
    assert {node: harness.node_exec(node, list_files).stdout for node in NODES} == files


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lab's inventory, into which runs write: other tests read the clone at the same time."""
    root = tmp_path_factory.mktemp("owner")
    (root / ".lab").symlink_to(REPO / ".lab")
    made = root / harness.INVENTORY
    shutil.copytree(REPO / harness.INVENTORY, made)
    return made


def test_a_model_of_a_hub_is_added_by_one_command_and_served_by_one(inventory: Path) -> None:
    run = partial(harness.run, inventory=inventory)
    files = {
        path.name: path.read_bytes() for path in (REPO / ".lab" / "models" / QWEN3_REPO).iterdir() if path.is_file()
    }
    with hub.serve({**THREE, ADDED_REPO: files}) as server:
        boxes = {"add_model_memory_gib": 119, "add_model_overrides": {"serve": {"kv-cache-memory-bytes": 8 * GIB}}}
        asked = {"weights_hub_endpoint": server.url, **boxes}
        four = run("playbooks/add_model.yml", {"repo": "org/needs-four", **asked}, check=True)
        report = " ".join(four.output().split())
        for verdict in ("1 box: refused.", "2 boxes: refused.", "4 boxes: fits; "):
            assert verdict in report, report
        large = run("playbooks/add_model.yml", {"repo": "org/too-large", **asked}, check=True, ok=False)
        assert "is too large for the 4 nodes of this inventory" in " ".join(large.failed_messages())

        weights = {"weights_hub_endpoint": server.url, "weights_from": "hub"}
        result = run("playbooks/add_model.yml", {"repo": ADDED_REPO, "add_model_name": ADDED, **weights})
        assert result.changed_tasks() == [f"{HEAD}: Write the model file"], result.describe()
        assert not [path for path in server.seen if path.endswith(".safetensors")]
        written = inventory / "group_vars" / "model_tiny_added.yml"
        spec = yaml.safe_load(written.read_text(encoding="utf-8"))["model_spec"]
        assert (spec["nodes"], spec["image"], spec["revision"]) == (1, "vllm-lab", hub.commit_of(files))
        harness.assert_converged(
            run("playbooks/add_model.yml", {"repo": ADDED_REPO, "add_model_name": ADDED, **weights})
        )

        run("swap-model.yml", {"model": ADDED, **weights})

    assert harness.served_models() == [ADDED_REPO]
    assert QWEN3_SENTENCE in harness.chat(ADDED_REPO, "What is a GB10?")["choices"][0]["message"]["content"]
    assert [node for node in NODES if f"vllm-{FIRST}" in harness.containers_on(node)] == []


@pytest.fixture
def drafter() -> Iterator[dict[str, str]]:
    """A draft model beside the lab's models, the dense one without its tokenizer: SHA-256 of each file by its name."""
    models = REPO / ".lab" / "models"
    made = models / DRAFTER
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(models / QWEN3_REPO, made, ignore=shutil.ignore_patterns("tokenizer*"))
    yield {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.iterdir()}
    shutil.rmtree(made)


@pytest.fixture
def reference() -> Iterator[str]:
    """The lab's image by its digest in a registry on the head."""
    program = Path(registry.__file__).read_text(encoding="utf-8")
    tag = harness.node_exec(HEAD, "docker image ls --format '{{.Repository}}:{{.Tag}}' gb10/vllm-lab").lines[0]
    digest = harness.node_exec(HEAD, ["python3", "-c", program, "publish", tag]).stdout.strip()
    serve = ["systemd-run", "--quiet", "--collect", "--unit", "e2e-registry", "python3", "-c", program, "serve"]
    harness.node_exec(HEAD, serve)
    knock = ["bash", "-c", f"</dev/tcp/127.0.0.1/{registry.PORT}"]
    harness.wait_until("the registry", lambda: harness.node_exec(HEAD, knock, check=False).rc == 0, stall_s=300)
    yield f"127.0.0.1:{registry.PORT}/{registry.NAME}@{digest}"
    harness.node_exec(HEAD, "systemctl stop e2e-registry")


def accepted_tokens() -> float:
    """Return how many tokens of a draft model the engine has taken; it counts them after it has answered."""
    metrics = harness.api_get("/metrics").text
    counts = re.findall(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, counts))


def test_a_recipe_file_is_served_as_it_is_with_its_image_a_draft_model_and_data_that_the_image_makes(
    drafter: dict[str, str], reference: str, inventory: Path, tmp_path: Path
) -> None:
    """The image is pulled and gives its options; drafter and data are on every node; vLLM takes what one proposes."""
    recipe = tmp_path / RECIPE.name
    recipe.write_text(RECIPE.read_text(encoding="utf-8").replace("container: vllm-lab", f"container: {reference}"))
    overrides = {
        "model_overrides": {"prepared_data": [DATA]},
        "weights_prepare_docker_args": [],
    }
    result = harness.run("swap-model.yml", {"recipe": str(recipe), **overrides}, inventory=inventory)

    assert harness.served_models() == ["lab/tiny-recipe"]
    # The most likely word each time: when words are drawn, those of a draft model come through on the CPU.
    answer = harness.chat("lab/tiny-recipe", "What is a GB10?", temperature=0)["choices"][0]["message"]["content"]
    assert QWEN3_SENTENCE in answer, answer
    assert "post_commands: nothing is run after a start but the verification." in " ".join(result.output().split())
    (table,) = (json.loads(path.read_text(encoding="utf-8")) for path in (inventory / ".image_flags").glob("*.json"))
    assert (table["vllm"], table["device"]) == ("0.32.0+cpu", "cpu")
    assert "tiny-recipe fits on this cluster." in " ".join(result.output().split())
    assert {"tensor-parallel-size", "speculative-config"} <= set(table["options"])
    harness.wait_until("a word of the draft model that was taken", accepted_tokens, stall_s=60)
    config = hashlib.sha256((REPO / ".lab" / "models" / QWEN3_REPO / "config.json").read_bytes()).hexdigest()
    for node in NODES:
        assert f"vllm-{FIRST}" not in harness.containers_on(node)
        inside = f"docker exec vllm-tiny-recipe sh -c 'cd {CONTAINER}/{DRAFTER} && sha256sum *; cat /data/words/digest'"
        *files, digest = harness.node_exec(node, inside).stdout.splitlines()
        assert {name: digest for digest, name in (line.split() for line in files)} == drafter
        assert digest == config
    harness.assert_converged(
        harness.run("playbooks/weights.yml", {"recipe": str(recipe), **overrides}, inventory=inventory)
    )


def test_swap_serves_the_second_model_through_ray_while_a_second_operator_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "first.log"
    with first_operator(log) as first:
        second = harness.run("swap-model.yml", {"model": FIRST}, ok=False)
        words = "\n".join(second.failed_messages())
        assert re.search(rf"{HEAD}: \S+ on \S+ runs swap-model.yml -e model={SECOND} since ", words), words
        assert "-e take_over=true" in words
        assert second.changed_tasks() == []
        assert harness.wait_for_end(first, log) == 0, log.read_text()[-3000:]
    wait_for_the_end_of_the_lease()

    assert harness.served_models() == [SERVED]
    assert harness.chat(SERVED, "What is a GB10?")["usage"]["completion_tokens"] > 0
    nodes = harness.node_exec(HEAD, f"docker exec vllm-{SECOND} ray status --address 10.211.0.11:6379").stdout
    assert nodes.count("node_") == len(NODES)


def test_nothing_of_the_first_model_runs_or_would_start_again() -> None:
    for node in NODES:
        kept, *others = harness.containers_on(node, stopped=True)
        assert kept.startswith("gb10-keep-")  # holds the image, and never ran
        assert [name for name in others if not name.startswith("gb10-keep-")] == [f"vllm-{SECOND}"]
        assert harness.unit_state(node, f"vllm-{FIRST}.service")["ActiveState"] == "inactive"
        assert harness.unit_state(node, f"vllm-{FIRST}.service")["UnitFileState"] == "disabled"


def reachable(address: str, port: int) -> bool:
    """Return whether this host, which is on the management network alone, gets a connection."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def test_ray_is_reachable_on_the_fabric_alone() -> None:
    for node in NODES:
        management = node.replace("gx10-", "10.210.0.1")
        fabric = node.replace("gx10-", "10.211.0.1")
        lines = harness.node_exec(node, "ss -Hltnp").lines
        listening = [(*line.split()[3].rsplit(":", 1), line) for line in lines]
        assert [port for address, port, _line in listening if address == fabric], f"Ray should listen: {lines}"
        # On the addresses that the management network reaches.
        elsewhere = {
            int(port) for address, port, _line in listening if not address.startswith((fabric, "127.", "[::1]"))
        }
        open_ports = {port for port in elsewhere if reachable(management, port)}
        assert open_ports == ({22, 8000} if node == HEAD else {22}), (lines, harness.node_exec(node, NFT).stdout)
    peer = harness.node_exec(NODES[1], "timeout 60 bash -c '</dev/tcp/10.211.0.11/6379'", check=False)
    assert peer.rc == 0, "a worker does not reach the head's Ray over the fabric"


def test_the_mod_is_in_every_rank() -> None:
    for node in NODES:
        record = harness.node_exec(node, f"docker exec vllm-{SECOND} cat /etc/gb10/mods.json").stdout
        assert "ray-on-cpu" in record


def test_after_a_run_that_was_killed_the_same_swap_goes_on_and_changes_nothing(tmp_path: Path) -> None:
    with first_operator(tmp_path / "killed.log") as first:
        kill_with_all(first.pid)
    harness.assert_converged(harness.run("swap-model.yml", {"model": SECOND}))


def test_a_run_that_names_no_model_acts_on_what_was_last_verified() -> None:
    """The inventory names the first model still; the runbook's remedy is serve.yml alone."""
    result = harness.run("playbooks/serve.yml")

    harness.assert_converged(result)
    assert any(
        f"Model {SECOND}, from what was last verified on {HEAD}" in each
        for each in result.messages("Report the model of this run and where its name is from")
    )
    assert harness.served_models() == [SERVED]


def test_a_lease_of_another_control_node_is_refused_until_it_is_taken_over() -> None:
    held = {
        "scope": "deployment",
        "run": "other",
        "who": "ada",
        "where": "elsewhere",
        "what": "swap-model.yml",
        "since": "2026-11-28T20:00:00+00:00",
        "process": {"node": "elsewhere", "pid": 1, "started": "1"},
    }
    # What ends the lease of the run before would take this one away.
    wait_for_the_end_of_the_lease()
    now_s = float(harness.node_exec(HEAD, "python3 -c 'import time; print(time.monotonic())'").stdout)
    # Older than the lease of a run that lives may be, so its holder is not waited for; it holds for two minutes more.
    text = json.dumps({**held, "taken_s": now_s - 100, "renewed_s": now_s - 45})
    try:
        harness.node_exec(HEAD, ["sh", "-c", f"mkdir -p -m 700 /run/gb10/lease; echo '{text}' > {LEASE}"])

        refused = harness.run("playbooks/stop.yml", ok=False)
        assert f"{HEAD}: ada on elsewhere runs swap-model.yml since 2026-11-28T20:00:00" in "\n".join(
            refused.failed_messages()
        )
        assert harness.served_models() == [SERVED]

        harness.run("playbooks/weights.yml", {"take_over": True})
        wait_for_the_end_of_the_lease()
    finally:
        harness.node_exec(HEAD, f"rm -f {LEASE}")
