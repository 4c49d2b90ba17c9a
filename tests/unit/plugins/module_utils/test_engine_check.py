# SPDX-License-Identifier: Apache-2.0
"""What the check inside the image answers, captured from vLLM 0.32.0+cpu, and the sentences made of it."""

from __future__ import annotations

import json

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._engine.check import MARK
from ansible_collections.gb10.cluster.plugins.module_utils._engine.verdict import (
    MAX_WORDS_CHARS,
    NoVerdictError,
    digest,
    parse,
    refusal,
    vllm_words,
)

TOO_LONG = (
    "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (99999) is greater than the "
    "derived max_model_len (max_position_embeddings=8192.0 or model_max_length=None in model's config.json). To allow "
    "overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN "
    "must be used with caution. [type=value_error, input_value=ArgsKwargs((), {'model': ...nderer_num_workers': 1}), "
    "input_type=ArgsKwargs]"
)
UNSUPPORTED = (
    "1 validation error for ModelConfig\n  Value error, Model architectures ['NoSuchForCausalLM'] are not supported "
    "for now. Supported architectures: dict_keys(["
    + ", ".join(f"'Model{n}ForCausalLM'" for n in range(300))
    + "]) [type=value_error]"
)
PARSER = "'invalid tool call parser: nosuch (chose from { apertus,cohere_command3,hermes,qwen3_xml,step3,xlam })'"
OPTION = "vllm: error: unrecognized arguments: --max-modell-len 7"


def printed(**verdict: object) -> str:
    return f"INFO 11-21 something else\n{MARK}{json.dumps(verdict)}\n"


def test_the_verdict_is_found_behind_what_vllm_prints() -> None:
    out = printed(ok=True, stage="config", error="", architecture=["Qwen3ForCausalLM"], max_model_len=4096)
    assert parse(out, "", 0)["max_model_len"] == 4096


@pytest.mark.parametrize(
    ("code", "out", "err", "said"),
    [
        (
            1,
            "",
            "OSError: no\nImportError: libtorch_cuda.so",
            "exit code 1 and no verdict: OSError: no | ImportError: lib",
        ),
        (125, "", "", "exit code 125 and no verdict: no output"),
        (137, "", "starting", "exit code 137 is a kill: the memory that engine_check_docker_args allow was too little"),
        (
            2,
            printed(ok=False, stage="import", error="No module named 'vllm'"),
            "",
            "cannot be asked (No module named 'vllm')",
        ),
    ],
)
def test_no_verdict_is_not_a_verdict(code: int, out: str, err: str, said: str) -> None:
    with pytest.raises(NoVerdictError) as error:
        parse(out, err, code)
    assert said in str(error.value)


def test_the_frame_of_pydantic_is_taken_off() -> None:
    words = vllm_words(TOO_LONG)
    assert words.startswith("User-specified max_model_len (99999) is greater than the derived max_model_len")
    assert "type=value_error" not in words


def test_a_long_list_is_cut() -> None:
    words = vllm_words(UNSUPPORTED)
    assert words.startswith("Model architectures ['NoSuchForCausalLM'] are not supported for now.")
    assert words.endswith(" …")
    assert len(words) <= MAX_WORDS_CHARS + 2


@pytest.mark.parametrize(
    ("stage", "error", "ours"),
    [
        ("config", UNSUPPORTED, "NoSuchForCausalLM"),
        ("config", TOO_LONG, "max-model-len"),
        ("parsers", PARSER, "parser"),
        ("parse", OPTION, "option"),
        ("config", "Something that nobody has met before", "Change model_spec.serve or model_spec.env of big"),
    ],
)
def test_a_refusal_has_vllms_sentence_and_ours(stage: str, error: str, ours: str) -> None:
    message = refusal("big", "gb10/vllm-node:1", {"stage": stage, "error": error})
    first, theirs, own, last = message.splitlines()
    assert first.startswith("gb10/vllm-node:1 would not start big: ")
    assert theirs == f"  vLLM says: {vllm_words(error)}"
    assert ours in own
    assert last == "Nothing was stopped or changed."


def test_every_input_changes_the_name_of_the_record() -> None:
    base = digest("sha256:1", ["vllm", "serve", "m"], {"A": "1", "B": "2"}, "program")
    assert base == digest("sha256:1", ["vllm", "serve", "m"], {"B": "2", "A": "1"}, "program")
    others = {
        digest("sha256:2", ["vllm", "serve", "m"], {"A": "1", "B": "2"}, "program"),
        digest("sha256:1", ["vllm", "serve", "n"], {"A": "1", "B": "2"}, "program"),
        digest("sha256:1", ["vllm", "serve", "m"], {"A": "2", "B": "2"}, "program"),
        digest("sha256:1", ["vllm", "serve", "m"], {"A": "1", "B": "2"}, "program 2"),
    }
    assert len(others | {base}) == 5
