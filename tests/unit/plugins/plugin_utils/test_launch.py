# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shlex
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as model_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import launch


def plan(**changes: Any) -> dict[str, Any]:
    raw = {
        "name": "m",
        "repo": "o/m",
        "served_name": "o/m-served",
        "size_gib": 1,
        "nodes": 2,
        "image": "i",
        "engine": "native",
        "ports": {"master": 29510},
        "serve": {"tensor-parallel-size": 2},
    }
    spec, errors = model_spec.validate(model_spec.deep_merge(raw, changes))
    assert errors == []
    members = ["a", "b"][: spec["nodes"]]
    return {
        "spec": spec,
        "members": members,
        "addresses": {"a": "10.1.0.1", "b": "10.1.0.2"},
        "head_address": "10.1.0.1",
        "multi_node": spec["nodes"] > 1,
    }


def test_native_head_serves_and_workers_are_headless() -> None:
    head, errors = launch.rank_options(plan(), "a", "0.0.0.0")
    worker, worker_errors = launch.rank_options(plan(), "b", "0.0.0.0")
    assert errors == worker_errors == []
    rendezvous = {"nnodes": 2, "master-addr": "10.1.0.1", "master-port": 29510, "distributed-executor-backend": "mp"}
    assert rendezvous.items() <= head.items()
    assert rendezvous.items() <= worker.items()
    assert (head["node-rank"], worker["node-rank"]) == (0, 1)
    assert (head["host"], head["port"]) == ("0.0.0.0", 8000)
    assert worker["headless"] is True
    assert "headless" not in head
    assert "port" not in worker


def test_ray_ranks_name_the_backend_alone() -> None:
    options, errors = launch.rank_options(plan(engine="ray"), "a", "0.0.0.0")
    assert errors == []
    assert options["distributed-executor-backend"] == "ray"
    assert "nnodes" not in options


def test_one_node_needs_neither() -> None:
    options, errors = launch.rank_options(plan(nodes=1, serve={"tensor-parallel-size": 1}), "a", "127.0.0.1")
    assert errors == []
    assert "distributed-executor-backend" not in options


@pytest.mark.parametrize(
    "name", ["served-model-name", "port", "nnodes", "node-rank", "master-addr", "headless", "api-key"]
)
def test_what_the_plan_decides_cannot_be_given_twice(name: str) -> None:
    _options, errors = launch.rank_options(plan(serve={name: "x"}), "a", "0.0.0.0")
    assert f"model_spec.serve must not hold '{name}'" in errors[0]


def test_a_backend_that_contradicts_the_engine() -> None:
    _options, errors = launch.rank_options(plan(serve={"distributed-executor-backend": "ray"}), "a", "0.0.0.0")
    assert errors == ["model_spec.serve.distributed-executor-backend is 'ray', but engine 'native' needs 'mp'."]


def test_ray_on_one_node_is_refused() -> None:
    one = plan(nodes=1, serve={"tensor-parallel-size": 1, "distributed-executor-backend": "ray"})
    assert "one node needs no Ray" in launch.rank_options(one, "a", "0.0.0.0")[1][0]


def test_behind_a_proxy_the_engine_has_a_port_of_its_own() -> None:
    head, errors = launch.rank_options(plan(), "a", "127.0.0.1", 29602)
    worker, _errors = launch.rank_options(plan(), "b", "127.0.0.1", 29602)
    assert errors == []
    assert (head["host"], head["port"]) == ("127.0.0.1", 29602)
    assert "port" not in worker
    found = launch.entry_arguments(plan(), "a", [], {**WATCH, "api_host": "127.0.0.1", "api_port": 29602})
    assert found[found.index("--health") + 1] == "http://127.0.0.1:29602/health"
    assert launch.rank_ports(plan(), "a", 29600, 29602) == [29602, 29510, 29600]
    assert launch.rank_ports(plan(), "b", 29600, 29602) == []


def test_what_would_bypass_the_proxy_is_refused() -> None:
    exposed = plan(serve={"host": "0.0.0.0"})
    assert launch.rank_options(exposed, "a", "127.0.0.1", 29602)[1] == [
        "model_spec.serve must not hold 'host': behind the proxy (edge_proxy) the engine listens on loopback, and "
        "engine_api_host says where clients reach it. Remove it, or set edge_proxy: false."
    ]
    assert launch.rank_options(exposed, "a", "0.0.0.0")[1] == []


@pytest.mark.parametrize("behind", [0, 29602])
def test_a_port_of_the_model_on_which_something_else_listens_is_refused(behind: int) -> None:
    taken = {"engine_tether_port": 29510, "engine_swap_port": 29601, "edge_engine_port": 29602}
    assert launch.rank_options(plan(), "a", "127.0.0.1", behind, taken)[1] == [
        "engine_tether_port is 29510, and so is model_spec.ports.master: each needs a port of its own."
    ]
    one = plan(nodes=1, serve={"tensor-parallel-size": 1})
    assert launch.rank_options(one, "a", "127.0.0.1", behind, taken)[1] == [], "one node has no rendezvous"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "localhost"])
def test_an_address_that_loopback_leads_to_is_taken_without_the_proxy(address: str) -> None:
    assert launch.rank_options(plan(), "a", address)[1] == []


@pytest.mark.parametrize(("api_host", "serve"), [("10.1.0.5", {}), ("0.0.0.0", {"host": "10.1.0.5"})])
def test_one_address_without_the_proxy_is_refused_since_no_check_would_reach_it(
    api_host: str, serve: dict[str, Any]
) -> None:
    (error,) = launch.rank_options(plan(serve=serve), "a", api_host)[1]
    assert error.startswith("engine_api_host (or 'host' in model_spec.serve) is 10.1.0.5: without the proxy")
    assert "edge_proxy: true" in error


WATCH = {
    "api_host": "0.0.0.0", "tether_port": 29600, "tether_key": "/run/key", "silence_seconds": 30,
    "stall_seconds": 900, "floor_gib": 2.0,
    "same_env": ["Z", "B"],
}  # fmt: skip


def test_entry_arguments_of_each_role() -> None:
    ray = plan(engine="ray", ray_start_args=["--num-gpus=1"], required_env=["A", "B"])
    head = launch.entry_arguments(ray, "a", ["--x"], WATCH)
    worker = launch.entry_arguments(ray, "b", ["--x"], WATCH)
    members = ["--members", "a=10.1.0.1,b=10.1.0.2", "--require-env", "A,B", "--tether-port", "29600"]
    members += ["--tether-key", "/run/key", "--silence-seconds", "30", "--same-env", "B,Z", "--floor-gib", "2.0"]
    assert head == [
        "ray-head", "--model", "m", "--rank", "0", *members, "--health", "http://127.0.0.1:8000/health",
        "--port", "6379", "--stall-seconds", "900", "--ray-arg=--num-gpus=1",
        "--", "vllm", "serve", "/root/.cache/huggingface/o/m", "--x",
    ]  # fmt: skip
    assert worker == [
        "ray-worker", "--model", "m", "--rank", "1", *members, "--port", "6379", "--stall-seconds", "900",
        "--ray-arg=--num-gpus=1",
    ]  # fmt: skip
    assert launch.entry_arguments(plan(), "b", ["--y"], WATCH)[0] == "serve"


def test_a_single_node_holds_on_to_nobody_and_is_watched_all_the_same() -> None:
    one = plan(nodes=1, serve={"tensor-parallel-size": 1})
    found = launch.entry_arguments(one, "a", [], {**WATCH, "api_host": "10.1.0.1"})
    assert "--tether-port" not in found
    assert found[found.index("--floor-gib") + 1] == "2.0"
    assert found[found.index("--health") + 1] == "http://10.1.0.1:8000/health"
    assert "--floor-gib" not in launch.entry_arguments(one, "a", [], {**WATCH, "floor_gib": 0.0})


def test_ports_of_each_role() -> None:
    assert launch.rank_ports(plan(), "a") == [8000, 29510]
    assert launch.rank_ports(plan(), "a", 29600) == [8000, 29510, 29600]
    assert launch.rank_ports(plan(engine="ray"), "a") == [8000, 6379]
    assert launch.rank_ports(plan(), "b", 29600) == []
    assert launch.rank_ports(plan(nodes=1, serve={"tensor-parallel-size": 1}), "a", 29600) == [8000]


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("--port=8000", "--port=8000"),
        ('{"method":"mtp"}', '"{\\"method\\":\\"mtp\\"}"'),
        ("a b", '"a b"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ("back\\slash", '"back\\\\slash"'),
        ("", '""'),
        ("a\nExecStartPost=/bin/b", '"a\\x0aExecStartPost=/bin/b"'),
        ("plain\n", '"plain\\x0a"'),
        ("a\tb", '"a\\x09b"'),
    ],
)
def test_systemd_reads_arguments_back_unchanged(argument: str, quoted: str) -> None:
    assert launch.systemd_quote(argument) == quoted
    assert "\n" not in quoted
    if argument.isprintable() and "%" not in argument and "$" not in argument:
        assert shlex.split(quoted) == [argument]


def test_files_are_shown_with_their_secrets_masked() -> None:
    text = "A=1\nVLLM_API_KEY=abc\nhf_token=x y\nTOKENIZERS=2\nEMPTY_PASSWORD=\n"
    files: list[dict[str, Any]] = [
        {"path": "/e", "content": text, "secret": True},
        {"path": "/p", "content": "api_key=unrelated"},
    ]
    shown = launch.masked(files)
    assert shown[0]["content"] == (
        "A=1\nVLLM_API_KEY=********\nhf_token=********\nTOKENIZERS=********\nEMPTY_PASSWORD=\n"
    )
    assert shown[1] == files[1]
    assert files[0]["content"] == text


DRAFTER = {"repo": "o/draft", "size_gib": 1}
MOUNTED = "/root/.cache/huggingface/o/draft"


@pytest.mark.parametrize("model", [{}, {"model": "o/draft"}, {"model": MOUNTED}])
def test_the_draft_model_is_read_from_its_mount(model: dict[str, str]) -> None:
    written = {"method": "dflash", "num_speculative_tokens": 7, **model}
    given = plan(drafter=DRAFTER, serve={"speculative-config": written})
    for member in ("a", "b"):
        options, errors = launch.rank_options(given, member, "0.0.0.0")
        assert errors == []
        assert options["speculative-config"] == {**written, "model": MOUNTED}


def test_a_draft_model_in_json_is_read_from_its_mount() -> None:
    given = plan(drafter=DRAFTER, serve={"speculative-config": '{"method": "dflash"}'})
    options, errors = launch.rank_options(given, "a", "0.0.0.0")
    assert errors == []
    assert options["speculative-config"] == {"method": "dflash", "model": MOUNTED}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drafter": DRAFTER}, "speculative-config does not say how it is used"),
        (
            {"drafter": DRAFTER, "serve": {"speculative-config": {"model": "o/other"}}},
            "speculative-config.model is 'o/other', but model_spec.drafter.repo is 'o/draft'",
        ),
        (
            {"drafter": DRAFTER, "serve": {"speculative-config": {"revision": "abc"}}},
            "must not hold 'revision': it comes from model_spec.drafter.revision.",
        ),
        (
            {"serve": {"speculative-config": {"model": "o/draft", "num_speculative_tokens": 2}}},
            "speculative-config.model is 'o/draft', a repository that no node has: engines run without the hub. "
            "Give model_spec.drafter {repo: o/draft, size_gib: ...}",
        ),
    ],
)
def test_a_draft_model_that_would_not_be_found_is_refused(changes: dict[str, Any], sentence: str) -> None:
    _options, errors = launch.rank_options(plan(**changes), "a", "0.0.0.0")
    assert any(sentence in error for error in errors), errors


@pytest.mark.parametrize("named", ["ngram", "/root/.cache/huggingface/o/m/dflash", None])
def test_speculation_without_another_repository_is_left_as_it_is(named: str | None) -> None:
    written = {"num_speculative_tokens": 2, **({"model": named} if named else {})}
    options, errors = launch.rank_options(plan(serve={"speculative-config": written}), "a", "0.0.0.0")
    assert errors == []
    assert options["speculative-config"] == written


def test_the_container_mounts_what_lies_beside_the_weights() -> None:
    data = {"name": "rows", "command": ["make", "{output}"], "mount": "/data/rows", "size_gib": 48}
    found = launch.mounts(plan(drafter=DRAFTER, prepared_data=[data]), "/w")
    assert [(each["source"], each["target"]) for each in found] == [
        ("/w/o/m", "/root/.cache/huggingface/o/m"),
        ("/w/o/draft", MOUNTED),
        ("/w/gb10-prepared/m.rows", "/data/rows"),
    ]
    assert found[1]["arguments"] == ["--volume", f"/w/o/draft:{MOUNTED}:ro"]
    assert len(launch.mounts(plan(), "/w")) == 1


def test_each_repository_of_a_model_is_moved_like_the_others() -> None:
    data = {"name": "rows", "command": ["make", "{output}"], "mount": "/data/rows", "size_gib": 48}
    given = plan(drafter=DRAFTER, prepared_data=[data], serve={"load-format": "fastsafetensors"})
    found = launch.trees(given)
    assert [(each["repo"], each["kind"], each["size_gib"]) for each in found] == [
        ("o/m", "model", 1.0),
        ("o/draft", "drafter", 1.0),
        ("gb10-prepared/m.rows", "prepared", 48.0),
    ]
    assert found[0]["serve"] == given["spec"]["serve"]
    assert found[1]["serve"] == {"load-format": "fastsafetensors", "skip-tokenizer-init": True}
    assert launch.trees_beside(given, "o/m") == [
        {"repo": "o/draft", "size_gib": 1.0},
        {"repo": "gb10-prepared/m.rows", "size_gib": 48.0},
    ]
    assert launch.trees_beside(given, "o/m", ["model", "drafter"]) == [{"repo": "o/draft", "size_gib": 1.0}]
    assert [each["repo"] for each in launch.trees_beside(given, "o/draft", ["model", "drafter"])] == ["o/m"]
    assert launch.trees({}) == []


def test_prepared_data_is_made_anew_when_anything_that_it_is_made_from_changes() -> None:
    data = {
        "name": "rows",
        "command": ["make", "--from={model}", "{output}/rows"],
        "mount": "/data/rows",
        "size_gib": 48,
        "env": {"OUT": "{output}"},
    }
    image = {"tag": "gb10/i:1", "fingerprint": "f1"}
    (found,) = launch.prepared(plan(prepared_data=[data]), image, "/w")
    assert found["repo"] == "gb10-prepared/m.rows"
    assert found["make"] == {
        "command": ["make", "--from=/root/.cache/huggingface/o/m", "/gb10-output/rows"],
        "env": {"OUT": "/gb10-output"},
        "mounts": {"/w/o/m": "/root/.cache/huggingface/o/m"},
        "size_gib": 48.0,
        "image": "gb10/i:1",
    }
    others = [
        launch.prepared(plan(prepared_data=[{**data, "command": ["make", "{output}"]}]), image, "/w"),
        launch.prepared(plan(prepared_data=[data], revision="abc"), image, "/w"),
        launch.prepared(plan(prepared_data=[data]), {**image, "fingerprint": "f2"}, "/w"),
    ]
    assert len({found["revision"], *(each[0]["revision"] for each in others)}) == 4
    assert launch.prepared(plan(prepared_data=[data]), image, "/w") == [found]
    assert launch.prepared(plan(), image, "/w") == []
