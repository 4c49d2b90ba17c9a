# SPDX-License-Identifier: Apache-2.0
"""The module around the memory model: arguments, files, failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gb10.cluster.plugins.module_utils._memory import inputs
from ansible_collections.gb10.cluster.plugins.modules import memory_budget

REPO = Path(__file__).resolve().parents[4]
MODELS = yaml.safe_load((REPO / "benchmarks" / "memory_points.yml").read_text(encoding="utf-8"))["models"]

MEMINFO = "MemTotal:       127600640 kB\nMemFree:         100000 kB\nMemAvailable:   119714304 kB\n"  # 121.69, 114.17

NANO: dict[str, Any] = {
    "geometry": MODELS["nano"]["geometry"],
    "weights_gib": 17.695,
    "vllm_version": "0.18.1",
    "kv_cache_dtype": "fp8",
    "max_model_len": 8192,
    "max_num_seqs": 1,
    "gpu_memory_utilization": 0.2,
    "enforce_eager": True,
    "mem_total_gib": 121.69,
    "mem_available_gib": 111.27,
}


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return what it prints."""
    given = {name: value for name, value in arguments.items() if value is not None}
    with patch_module_args(given), pytest.raises(SystemExit):
        memory_budget.main()
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.fixture
def meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a /proc/meminfo of a GB10 in for this machine's."""
    file = tmp_path / "meminfo"
    file.write_text(MEMINFO, encoding="utf-8")
    monkeypatch.setattr(memory_budget, "MEMINFO", file)
    monkeypatch.setattr(memory_budget.run, "__defaults__", (file,))
    return file


def test_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, **NANO)
    assert result["changed"] is False
    assert result["verdict"] == "fits"
    assert result["kv_cache_tokens"] == 292320
    assert result["weights_gib_per_rank"] == 17.695
    assert result["breakdown"]["kv_pool_gib"] == pytest.approx(4.232, abs=0.001)
    assert result["suggestions"] == []


def test_a_refusal_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, **{**NANO, "gpu_memory_utilization": 0.15})
    assert "failed" not in result
    assert result["verdict"] == "refused"
    assert result["suggestions"][0]["change"] == {"gpu-memory-utilization": 0.17}


def test_everything_that_is_documented_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    documented = set(yaml.safe_load(memory_budget.RETURN))
    returned = set(call(capsys, **NANO)) - {"changed", "invocation"}
    assert returned == documented


def test_the_documentation_lists_every_argument() -> None:
    options = yaml.safe_load(memory_budget.DOCUMENTATION)["options"]
    assert set(options) == set(memory_budget.ARGUMENT_SPEC)
    for name, rule in memory_budget.ARGUMENT_SPEC.items():
        for key in ("type", "default", "choices", "required"):
            assert options[name].get(key) == rule.get(key), (name, key)


def test_the_nodes_own_memory(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    assert meminfo.exists()
    result = call(capsys, **{**NANO, "mem_total_gib": None, "mem_available_gib": None})
    assert result["mem_total_gib"] == pytest.approx(121.69, abs=0.002)
    assert result["mem_available_gib"] == pytest.approx(111.27, abs=0.003)


def test_memory_that_the_running_engine_will_give_back(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    text = MEMINFO.replace("119714304", "10485760")
    meminfo.write_text(text, encoding="utf-8")
    arguments = {**NANO, "mem_total_gib": None, "mem_available_gib": None}
    assert call(capsys, **arguments)["verdict"] == "refused"
    result = call(capsys, **arguments, reclaim_gib=104)
    assert result["verdict"] == "fits"
    assert result["mem_available_gib"] == pytest.approx(10 + 104 - 2.9)
    assert call(capsys, **arguments, reclaim_gib=500)["mem_available_gib"] == pytest.approx(121.69, abs=0.002)


@pytest.mark.parametrize(
    ("active", "available_gib", "verdict"),
    [("", 10 - 2.9, "refused"), ("vllm-nano.service loaded active running vLLM\n", 111.27, "fits")],
)
def test_a_node_that_serves_is_judged_by_its_size(
    capsys: pytest.CaptureFixture[str],
    meminfo: Path,
    monkeypatch: pytest.MonkeyPatch,
    active: str,
    available_gib: float,
    verdict: str,
) -> None:
    asked: list[list[str]] = []

    def systemctl(_module: Any, words: list[str], **_options: Any) -> tuple[int, str, str]:
        asked.append(words)
        return 0, active, ""

    monkeypatch.setattr(basic.AnsibleModule, "run_command", systemctl)
    meminfo.write_text(MEMINFO.replace("119714304", "10485760"), encoding="utf-8")
    arguments = {**NANO, "mem_total_gib": None, "mem_available_gib": None, "engine_units": ["vllm-*.service"]}
    result = call(capsys, **arguments)
    assert (result["verdict"], result["mem_available_gib"]) == (verdict, pytest.approx(available_gib))
    assert asked == [["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "vllm-*.service"]]


@pytest.mark.parametrize(("driver", "verdict"), [(True, "refused"), (False, "fits")])
def test_an_image_that_was_not_asked_runs_on_what_the_node_is_made_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, verdict: str
) -> None:
    """Without a budget vLLM wants 0.92 of the node free at its start, on a GPU alone."""
    file = tmp_path / "version"
    if driver:
        file.touch()
    monkeypatch.setattr(inputs.device_here, "__defaults__", (file,))
    arguments = {**NANO, "gpu_memory_utilization": None, "kv_cache_memory_gib": 1, "vllm_version": "0.32.0"}
    assert call(capsys, **arguments, device="auto")["verdict"] == verdict


@pytest.mark.parametrize(("flags", "state"), [("avx512f avx512_bf16 amx", 4), ("avx2", 2)])
def test_the_nodes_processor_decides_on_the_states_of_the_cpu_build(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: Path,
    flags: str, state: int,
) -> None:  # fmt: skip
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(inputs.node_memory, "__defaults__", (meminfo, cpuinfo))
    recurrent = {
        "kind": "mamba2", "layers": 2, "heads": 16, "head_dim": 32, "state_size": 64, "groups": 4, "conv_kernel": 4,
        "state_dtype": "bfloat16",
    }  # fmt: skip
    found = call(
        capsys, geometry=QWEN | {"recurrent": recurrent}, weights_gib=1, vllm_version="0.32.0+cpu", device="cpu",
        max_model_len=4096, kv_cache_memory_gib=2,
    )  # fmt: skip
    kept = 16 * 32 * 64 * state + (16 * 32 + 2 * 4 * 64) * 3 * 2
    page = found["attn_block_tokens"] * 2 * 4 * 256 * 2
    assert found["padding_percent"] == pytest.approx(100 * (page - kept) / kept, abs=0.01)


def test_a_given_total_needs_no_node(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    meminfo.unlink()
    result = call(capsys, **{**NANO, "mem_available_gib": None})
    assert result["mem_available_gib"] == 111.27
    assert result["notes"] == ["mem_available_gib was not given: 111.27 GiB assumed, after the tightest node measured."]


def test_a_given_availability_with_the_nodes_total(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    assert meminfo.exists()
    result = call(capsys, **{**NANO, "mem_total_gib": None, "mem_available_gib": 100.0})
    assert result["mem_total_gib"] == pytest.approx(121.69, abs=0.002)
    assert result["mem_available_gib"] == 100.0


def test_a_node_without_meminfo(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    meminfo.unlink()
    result = call(capsys, **{**NANO, "mem_total_gib": None})
    assert result["failed"] is True
    assert result["msg"] == f"{meminfo} cannot be read on this node: No such file or directory. Give mem_total_gib."


def test_a_meminfo_without_its_lines(capsys: pytest.CaptureFixture[str], meminfo: Path) -> None:
    meminfo.write_text("SwapTotal: 1 kB\n", encoding="utf-8")
    result = call(capsys, **{**NANO, "mem_total_gib": None})
    assert result["msg"] == "/proc/meminfo has no line MemTotal."


NANO_CONFIG: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 2688,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "chunk_size": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "max_position_embeddings": 262144,
}


@pytest.mark.parametrize("directory", [True, False])
def test_a_geometry_from_the_models_own_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, directory: bool
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(NANO_CONFIG), encoding="utf-8")
    path = tmp_path if directory else file
    result = call(capsys, **{**NANO, "geometry": None, "config_json": str(path)})
    assert result["verdict"] == "fits"
    assert result["kv_cache_tokens"] == 292320


def test_an_unknown_architecture_is_honestly_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}', encoding="utf-8")
    result = call(capsys, **{**NANO, "geometry": None, "config_json": str(tmp_path)})
    assert result["verdict"] == "unknown"
    assert result["missing"][0].startswith("The memory model has no rules for the architecture MambaForCausalLM")
    assert result["kv_pool_gib"] is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "config_json: {file} is not JSON: Expecting property name"),
        ("[]", "config_json: {file} holds no JSON object."),
        ("[" * 100_000, "config_json: {file} is not JSON: maximum recursion depth exceeded"),
    ],
    ids=["broken", "list", "deep"],
)
def test_a_file_that_is_no_config(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    result = call(capsys, **{**NANO, "geometry": None, "config_json": str(file)})
    assert result["failed"] is True
    assert result["msg"].startswith(sentence.format(file=file))


def test_a_config_that_is_not_there_yet_is_unknown_and_a_measured_cache_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sentence = f"{tmp_path / 'config.json'} cannot be read on this node: No such file or directory."
    asked = {**NANO, "geometry": None, "config_json": str(tmp_path / "config.json")}
    result = call(capsys, **asked)
    assert (result["verdict"], result["missing"]) == ("unknown", [sentence])
    result = call(capsys, **asked, measured=[{"pool_gib": 4.2, "tokens": 292000, "source": "a report"}])
    assert (result["verdict"], result["missing"]) == ("tight", [sentence])


def test_wrong_settings_fail_with_every_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, **{**NANO, "weights_gib": -1, "max_model_len": 0})
    assert result["failed"] is True
    assert result["problems"] == [
        "weights_gib is -1.0, but it must be above zero (GiB).",
        "max_model_len is 0, but it must be above zero (tokens).",
    ]
    assert result["msg"] == " ".join(result["problems"])


def test_a_wrong_geometry_fails_with_every_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, **{**NANO, "geometry": {"layers": 1}})
    assert result["failed"] is True
    assert len(result["problems"]) == 4
    assert result["problems"][0] == "geometry.architecture is missing: it must be a text."


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"geometry": None}, "one of the following is required: geometry, config_json, measured"),
        ({"config_json": "/srv/models"}, "parameters are mutually exclusive: geometry|config_json"),
        ({"kv_cache_dtype": "int4"}, "value of kv_cache_dtype must be one of"),
        ({"device": "tpu"}, "value of device must be one of: cuda, cpu, auto, got: tpu"),
        ({"max_model_len": None}, "missing required arguments: max_model_len"),
        ({"vllm_version": None}, "missing required arguments: vllm_version"),
        ({"budget": 108}, "Unsupported parameters for"),
    ],
)
def test_arguments_that_ansible_refuses(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    result = call(capsys, **{**NANO, **changes})
    assert result["failed"] is True
    assert sentence in result["msg"]


def test_check_mode_is_supported(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, **NANO, _ansible_check_mode=True)["verdict"] == "fits"
    assert basic is sys.modules["ansible.module_utils.basic"]


def test_stages_share_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (call(capsys, **{**NANO, "kv_cache_memory_gib": 2, "gpu_memory_utilization": None,
                                "pipeline_parallel_size": stages}) for stages in (1, 2))  # fmt: skip
    assert two["weights_gib_per_rank"] == pytest.approx(one["weights_gib_per_rank"] / 2, abs=0.001)
    assert two["kv_cache_tokens"] == pytest.approx(2 * one["kv_cache_tokens"], rel=0.01)


QWEN: dict[str, Any] = {
    "architecture": "Qwen3_5ForConditionalGeneration", "layers": 64, "hidden_size": 5120, "vocab_size": 248320,
    "max_position_embeddings": 262144, "attention": {"layers": 16, "heads": 24, "kv_heads": 4, "head_dim": 256},
    "recurrent": {
        "kind": "gated_delta_net", "layers": 48, "k_heads": 16, "v_heads": 48, "k_head_dim": 128, "v_head_dim": 128,
        "conv_kernel": 4, "state_dtype": "float32",
    },
}  # fmt: skip
DRAFT: dict[str, Any] = {
    "architecture": "DFlash2DraftModel", "layers": 5, "hidden_size": 5120, "max_position_embeddings": 262144,
    "attention": {"layers": 5, "heads": 32, "kv_heads": 8, "head_dim": 128},
}  # fmt: skip


def with_draft(capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "geometry": QWEN, "weights_gib": 20.4, "vllm_version": "0.30.0", "kv_cache_dtype": "fp8", "max_num_seqs": 8,
        "max_model_len": 262144, "max_num_batched_tokens": 16384, "speculative_tokens": 8, "kv_cache_memory_gib": 19.6,
        "gpu_memory_utilization": 0.8, "draft_geometry": DRAFT, "draft_weights_gib": 3.5, "mem_total_gib": 121.69,
    }  # fmt: skip
    return call(capsys, **{**asked, **changes})


def test_a_draft_model_takes_weights_and_cache(capsys: pytest.CaptureFixture[str]) -> None:
    found = with_draft(capsys)
    assert found["weights_gib_per_rank"] == pytest.approx(23.9)
    # 16 layers of the target and 5 of the draft, of 2048 bytes each.
    assert found["kv_bytes_per_token"] == 21 * 2048
    without = with_draft(capsys, speculative_tokens=0)
    assert (without["weights_gib_per_rank"], without["kv_bytes_per_token"]) == (20.4, 16 * 2048)


def test_a_draft_model_is_read_from_its_own_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = {
        "architectures": ["DFlash2DraftModel"], "num_hidden_layers": 5, "hidden_size": 5120, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    found = with_draft(capsys, draft_geometry=None, draft_config_json=str(tmp_path))
    assert found["kv_bytes_per_token"] == with_draft(capsys)["kv_bytes_per_token"]
    (tmp_path / "config.json").unlink()
    missing = with_draft(capsys, draft_geometry=None, draft_config_json=str(tmp_path))
    assert (missing["verdict"], missing["missing"]) == (
        "unknown", [f"{tmp_path}/config.json cannot be read on this node: No such file or directory."],
    )  # fmt: skip


def test_a_draft_model_that_reads_the_targets_cache_takes_its_weights_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {"architectures": ["Gemma4AssistantForCausalLM"], "text_config": {"num_hidden_layers": 4}}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    found = with_draft(capsys, draft_geometry=None, draft_config_json=str(tmp_path))
    assert found["weights_gib_per_rank"] == pytest.approx(23.9)
    assert found["kv_bytes_per_token"] == 16 * 2048


def test_a_search_in_the_text_takes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = with_draft(capsys, draft_geometry=None, draft_weights_gib=0, draft_has_layers=False)
    assert (found["weights_gib_per_rank"], found["kv_bytes_per_token"]) == (20.4, 16 * 2048)
    own = with_draft(capsys, draft_geometry=None, draft_weights_gib=0)
    assert own["missing"][0].startswith("speculative_tokens is 8, but the geometry has no mtp section")


def test_auto_comes_to_the_longest_context(capsys: pytest.CaptureFixture[str]) -> None:
    found = with_draft(capsys, max_model_len=-1, kv_cache_memory_gib=8.0)
    longest = found["max_model_len"]
    assert 0 < longest < 262144
    assert found["max_concurrency"] >= 1
    assert with_draft(capsys, max_model_len=longest + 4096, kv_cache_memory_gib=8.0)["verdict"] == "refused"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decode_context_parallel_size": 2}, "vLLM cannot spread a sequence over 2 of 1 tensor-parallel ranks."),
        ({"decode_context_parallel_size": 0}, "decode_context_parallel_size is 0, but it must be above zero (ranks)."),
    ],
)
def test_contexts_that_cannot_be_spread(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    found = with_draft(capsys, **changes)
    assert sentence in [*found.get("reasons", []), *found.get("problems", [])]


def test_weights_that_are_not_there_yet_are_no_refusal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _self, text: warned.append(text))
    result = call(capsys, **NANO | {"weights_gib": 0, "weights_path": str(tmp_path)})
    assert (result["verdict"], result["unsized"]) == ("unknown", True)
    assert result["missing"] == [f"The size of the model is not known, and {tmp_path} holds no weights yet."]
    assert warned == [f"{result['missing'][0]} The check is done again when they are there."]


def test_a_configuration_that_comes_with_the_weights_is_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _self, text: warned.append(text))
    draft, own = tmp_path / "draft", tmp_path / "own"
    asked = {**NANO, "geometry": None, "config_json": str(own)}
    found = [with_draft(capsys, draft_geometry=None, draft_config_json=str(draft)), call(capsys, **asked)]
    for result, folder, warning in zip(found, (draft, own), warned, strict=True):
        assert (result["verdict"], result["unsized"]) == ("unknown", True)
        assert f"{folder}/config.json cannot be read on this node" in warning
    # Weights without a configuration are no transfer that is still to come.
    for folder in (draft, own):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"0")
    assert not with_draft(capsys, draft_geometry=None, draft_config_json=str(draft))["unsized"]
    assert not call(capsys, **asked)["unsized"]


def test_weights_on_the_node_count_where_no_size_is_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(9 * 2**30)
    result = call(capsys, **NANO | {"weights_gib": 0, "weights_path": str(tmp_path)})
    assert (result["unsized"], result["weights_gib_per_rank"]) == (False, 18)
    # A size that is given counts, whatever lies there.
    assert call(capsys, **NANO | {"weights_path": str(tmp_path)})["weights_gib_per_rank"] < 18
