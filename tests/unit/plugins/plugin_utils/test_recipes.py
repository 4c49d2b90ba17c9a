# SPDX-License-Identifier: Apache-2.0
"""Recipe files of other projects are read as their own programs read them, and commands as vLLM does."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.command import (
    CommandError,
    read_command,
    words_of,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import (
    command_of,
    fill,
    read_recipe,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import NoRecipeError, RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files

OPTIONS = serve_files.load_tables()["0.33.0"]["options"]


def serve(arguments: str) -> dict[str, Any]:
    return read_command("vllm serve org/model " + arguments, OPTIONS).serve


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-tp 2 -pp 1", {"tensor-parallel-size": 2, "pipeline-parallel-size": 1}),
        ("-ep --enable_prefix_caching", {"enable-expert-parallel": True, "enable-prefix-caching": True}),
        ("--no-enable-chunked-prefill", {"enable-chunked-prefill": False}),
        ("--gpu-memory-utilization=.85", {"gpu-memory-utilization": 0.85}),
        ("--kv-cache-memory-bytes 10G --max-model-len auto", {"kv-cache-memory-bytes": "10G", "max-model-len": "auto"}),
        ("-cc.mode 0", {"compilation-config": {"mode": 0}}),
        ("--compilation_config.cudagraph_mode none", {"compilation-config": {"cudagraph_mode": "none"}}),
        (
            "--compilation-config '{\"mode\": 3}' -cc.custom_ops+ all -cc.custom_ops+ none",
            {"compilation-config": {"mode": 3, "custom_ops": ["all", "none"]}},
        ),
        (
            "--default-chat-template-kwargs.thinking=true --default-chat-template-kwargs.reasoning_effort=high",
            {"default-chat-template-kwargs": {"thinking": True, "reasoning_effort": "high"}},
        ),
        ("--cudagraph-capture-sizes 1 2 4 --dtype auto", {"cudagraph-capture-sizes": [1, 2, 4], "dtype": "auto"}),
        ("--served-model-name a b", {"served-model-name": ["a", "b"]}),
        ("--limit-mm-per-prompt '{{\"image\":1}}'", {"limit-mm-per-prompt": {"image": 1}}),
        ('--hf-overrides \'{"a":{"b":1}}\'', {"hf-overrides": {"a": {"b": 1}}}),
        ("--a-forks-switch --a-forks-list 1 x", {"a-forks-switch": True, "a-forks-list": [1, "x"]}),
        ("--middleware one --middleware two", {"middleware": ["one", "two"]}),
        ("-O3", {"optimization-level": "3"}),
        (
            "--limit-mm-per-prompt.video.count 2 --limit-mm-per-prompt.video.width 9 --limit-mm-per-prompt.image 1",
            {"limit-mm-per-prompt": {"video": {"count": 2, "width": 9}, "image": 1}},
        ),
        ("--max-num-seq 4", {"max-num-seqs": 4}),
        ("--max-num 4 --load-form x", {"max-num": 4, "load-format": "x"}),
    ],
)
def test_options_are_read_as_vllm_reads_them(arguments: str, expected: dict[str, Any]) -> None:
    assert serve(arguments) == expected


def test_the_model_is_the_positional_or_the_option() -> None:
    assert read_command("vllm serve org/model", OPTIONS).model == "org/model"
    found = read_command("A=1 B='x y' python3 -m vllm.entrypoints.openai.api_server --model org/m --port 8000", OPTIONS)
    assert (found.model, found.serve, found.env) == ("org/m", {"port": 8000}, {"A": "1", "B": "x y"})


def test_what_is_left_out_is_noted() -> None:
    assert read_command("vllm serve a b --dtype", OPTIONS).notes == [
        "'b' follows the model without an option before it; it is left out.",
        "--dtype has no value in the command; it is left out.",
    ]


def test_continuation_lines_with_spaces_behind_and_comments() -> None:
    assert words_of("vllm serve x \\  \n  --a 1 # why\n") == ["vllm", "serve", "x", "--a", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm serve x && sleep 1", "a shell script ('&&' in it)"),
        ("vllm serve x | tee log", "a shell script ('|' in it)"),
        ("vllm serve 'x", "cannot be split into words"),
        ("llama-server -m x", "starts with 'llama-server -m', where 'vllm serve' is expected"),
        ("", "starts with ''"),
    ],
)
def test_other_commands_are_refused(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message.replace("(", r"\(").replace(")", r"\)").replace("|", r"\|")):
        read_command(text, OPTIONS)


def test_a_quoted_semicolon_is_no_script() -> None:
    assert serve("--chat-template 'a;b'") == {"chat-template": "a;b"}


EUGR = """
recipe_version: "1"
name: Some Model
container: vllm-node
model: org/some-model
cluster_only: true
build_args: [--x]
mods: [mods/fix-some]
defaults: {port: 8001, tensor_parallel: 2, spec: 3}
env: {VLLM_A: 1}
command: |
  vllm serve org/some-model -tp {tensor_parallel} --port {port} \\
    --speculative-config '{{"method":"mtp","num_speculative_tokens":{spec}}}'
"""


def test_eugr_version_1_is_one_format_string() -> None:
    recipe = read_recipe(EUGR, "some.yaml")
    assert (recipe.origin, recipe.name, recipe.model, recipe.container) == (
        "eugr 1",
        "Some Model",
        "org/some-model",
        "vllm-node",
    )
    assert (recipe.nodes, recipe.mods, recipe.env) == ((2, None), ["mods/fix-some"], {"VLLM_A": "1"})
    assert list(recipe.left) == ["build_args"]
    assert read_command(command_of(recipe), OPTIONS).serve == {
        "tensor-parallel-size": 2,
        "port": 8001,
        "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
    }


def test_a_version_1_placeholder_without_a_value_is_named() -> None:
    with pytest.raises(RecipeError, match=r"some\.yaml: 'command' uses spec, which 'defaults' does not have"):
        read_recipe(EUGR.replace(", spec: 3", ""), "some.yaml")
    with pytest.raises(RecipeError, match="the braces of 'command' do not match"):
        read_recipe(EUGR.replace("{spec}}}", "{spec}}"), "some.yaml")


SPARKRUN = """
recipe_version: "2"
model: org/m
model_revision: 0123456789abcdef0123456789abcdef01234567
runtime: vllm
container: ghcr.io/org/image:tag@sha256:00
min_nodes: 2
max_nodes: 2
metadata: {description: A model.}
defaults:
  host: 0.0.0.0
  tensor_parallel: 2
  spec: '{"method":"mtp","num_speculative_tokens":{k}}'
  k: 3
env: {WHERE: "{model}", SWITCH: true}
pre_exec: [echo]
a_key_of_tomorrow: 1
command: vllm serve {model} --tensor-parallel-size {tensor_parallel} --speculative-config '{spec}'
"""


def test_sparkrun_version_2_fills_in_until_nothing_changes() -> None:
    recipe = read_recipe(SPARKRUN, "m.yaml")
    assert (recipe.origin, recipe.name, recipe.nodes, recipe.description) == ("sparkrun 2", "m", (2, 2), "A model.")
    assert recipe.revision == "0123456789abcdef0123456789abcdef01234567"
    assert recipe.env == {"WHERE": "org/m", "SWITCH": "true"}
    assert recipe.left == {
        "pre_exec": "scripts are not run in the container; a change to vLLM is a mod (docs/mods.md)",
        "a_key_of_tomorrow": "this project has nothing of that name",
    }
    assert read_command(command_of(recipe), OPTIONS).serve["speculative-config"]["num_speculative_tokens"] == 3


def test_sparkrun_without_a_command_takes_the_defaults_as_options() -> None:
    text = (
        SPARKRUN[: SPARKRUN.index("command:")]
        .replace("spec:", "speculative_config:")
        .replace("  k: 3", "  k: 3\n  trust_remote_code: true\n  enforce_eager: false\n  expert_parallel: 1")
    )
    found = read_command(command_of(read_recipe(text.replace("{k}", "3").replace("  k: 3\n", ""), "m")), OPTIONS)
    assert found.serve == {
        "host": "0.0.0.0",
        "tensor-parallel-size": 2,
        "speculative-config": {"method": "mtp", "num_speculative_tokens": 3},
        "trust-remote-code": True,
        "enable-expert-parallel": True,
    }


def test_plain_braces_in_a_version_1_command_are_read_as_sparkrun_reads_them() -> None:
    plain = EUGR.replace('{{"method":"mtp","num_speculative_tokens":{spec}}}', '{"method":"mtp","n":{spec}}')
    recipe = read_recipe(plain, "x.yaml")
    assert read_command(command_of(recipe), OPTIONS).serve["speculative-config"] == {"method": "mtp", "n": 3}
    assert (
        recipe.left["command"] == "it has plain braces, which str.format cannot read; it is read as sparkrun reads it"
    )
    with pytest.raises(RecipeError, match="'command' has"):
        read_recipe(plain.replace(", spec: 3", ""), "x.yaml")


@pytest.mark.parametrize(
    ("command", "open_name"),
    [
        ("vllm serve {model} --port {port}", "{port}"),
        ("vllm serve {model} --a {a-b} --c {c-d}", "{c-d}"),
        ("vllm serve {model} --a '{\"n\":{n}}'", "{n}"),
        ("vllm serve {model} --a {none}", "{none}"),
        ("vllm serve {model} --chat-template '{{x}} {{ y }} {% z %}' --a {} --b '{\"c\": {}}' --d {a-b}", ""),
    ],
)
def test_a_placeholder_that_names_no_value_is_named(command: str, open_name: str) -> None:
    text = f"model: org/m\nruntime: vllm\ncontainer: c\ndefaults: {{a-b: 1, none: null}}\ncommand: >-\n  {command}\n"
    if not open_name:
        assert "--d 1" in read_recipe(text, "x.yaml").command
        return
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, "x.yaml")
    assert str(caught.value) == f"x.yaml: 'command' uses {open_name}, which 'defaults' does not have."


def test_a_version_that_only_its_author_counts_is_read_as_2() -> None:
    recipe = read_recipe(SPARKRUN.replace('"2"', "7"), "x.yaml")
    assert (recipe.origin, recipe.left["recipe_version"]) == (
        "sparkrun 7",
        "it says 7; it is read as 2, as sparkrun reads every one but 1",
    )


def test_a_recipe_of_sparkrun_without_a_container_gets_sparkruns_own() -> None:
    text = SPARKRUN.replace("container: ghcr.io/org/image:tag@sha256:00\n", "")
    assert read_recipe(text, "x.yaml").container == "ghcr.io/spark-arena/dgx-vllm-eugr-nightly-tf5:latest"
    assert read_recipe(EUGR.replace("container: vllm-node\n", ""), "x.yaml").container == ""


def test_defaults_that_nothing_uses_are_kept_apart() -> None:
    recipe = read_recipe(SPARKRUN.replace("  k: 3", "  k: 3\n  top_k: 20\n  served_model_name: some"), "x.yaml")
    assert recipe.unused == {"host": "0.0.0.0", "top_k": 20, "served_model_name": "some"}
    assert read_command(recipe.command, OPTIONS).serve["served-model-name"] == "some", "as sparkrun adds it"
    assert (
        read_recipe(EUGR.replace("spec: 3}", "spec: 3, served_model_name: some}"), "x.yaml").command.count("--s") == 1
    )


def test_a_circle_of_placeholders_ends() -> None:
    assert fill("{a}", {"a": "{b}", "b": "{a}"}) in ("{a}", "{b}")


def test_includes_merge_below_the_file_that_names_them() -> None:
    base = "defaults: {tensor_parallel: 1, port: 1}\nruntime: vllm\ncontainer: c"
    recipe = read_recipe(
        "include: base.yaml\nmodel: org/m\ndefaults: {port: 2}\n"
        "command: vllm serve {model} -tp {tensor_parallel} --port {port}",
        "m.yaml",
        lambda name, _above: (name, {"base.yaml": base}[name]),
    )
    assert read_command(command_of(recipe), OPTIONS).serve == {"tensor-parallel-size": 1, "port": 2}
    with pytest.raises(RecipeError, match="in a circle"):
        read_recipe("include: a", "a", lambda name, _above: (name, "include: a"))
    with pytest.raises(RecipeError, match="files beside it are not read here"):
        read_recipe("include: a", "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nruntime: sglang\ncontainer: c", "is for the engine sglang; this project serves with vLLM"),
        ("model: a\ncontainer: c\ncommand: llama-server -m a", "starts llama-server; this project serves with vLLM"),
        ("recipe_version: newest\nmodel: a", "has recipe_version 'newest', which is no number"),
        ("- a", "its top level is no mapping"),
        ("a: [", "x.yaml, line 1 is not valid YAML"),
        ("services: {}", "is no recipe"),
        ("model: a\ncontainer: c\nmin_nodes: many", "'min_nodes' must be a whole number of at least 1, found 'many'"),
        ("model: a\ncontainer: c\ndefaults: [1]", "'defaults' must be a mapping, found list"),
    ],
)
def test_what_is_no_recipe_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, "x.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{0.__class__}", "'command' has {0.__class__}, which is no value of 'defaults'"),
        ("{model.__class__.__mro__}", "'command' has {model.__class__.__mro__}"),
        ("{port:>1000000000}", "'command' has {port:>1000000000}"),
        ("{port!r}", "'command' has {port!r}"),
        ("{max-num-seqs}", "'command' has {max-num-seqs}"),
    ],
)
def test_a_version_1_template_reads_names_and_nothing_else(arguments: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(EUGR.replace("--port {port}", f"--port {arguments}"), "x.yaml")
    assert message in str(caught.value)


def test_attributes_in_a_version_2_template_are_text() -> None:
    assert fill("{a.__class__} {0.__class__} {a}", {"a": "x"}) == "{a.__class__} {0.__class__} x"


@pytest.mark.parametrize("version", ["1", "2"])
def test_placeholders_that_expand_without_end_are_refused(version: str) -> None:
    values = "".join(
        f"  v{level}: '{{v{level + 1}}}{{v{level + 1}}}{{v{level + 1}}}{{v{level + 1}}}'\n" for level in range(19)
    )
    text = (
        f"recipe_version: '{version}'\nmodel: org/m\ncontainer: c\nenv: {{X: '{{v0}}'}}\ndefaults:\n{values}  v19: x\n"
    )
    with pytest.raises(RecipeError, match="placeholders expand to more than 100000 characters"):
        read_recipe(text + "command: vllm serve {model}", "x.yaml")
    wide = f"recipe_version: '{version}'\nmodel: org/m\ncontainer: c\ndefaults: {{a: {'x' * 60_000}}}\n"
    with pytest.raises(RecipeError, match="placeholders expand to more than 100000 characters"):
        read_recipe(wide + "command: vllm serve m --a {a}{a}", "x.yaml")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "expands to more than 20000 values"),
        (f"x: &x {'y' * 100_000}\nl: [{', '.join(['*x'] * 50)}]", "expands to more than 20000 values"),
        ("a: &a [*a]", "nested too deeply, or contains itself"),
        ("a: " + "[" * 20_000, "nested too deeply, or contains itself"),
        ("a: !!python/object/apply:os.system [reboot]", "could not determine a constructor for the tag"),
        ("a: !vault x", "could not determine a constructor for the tag"),
        ("a: 2026-13-45", "holds a value that YAML cannot read"),
        ("? [a, b]\n: c", "is not valid YAML"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_hostile_yaml_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def include_from(files: dict[str, str]) -> Any:
    return lambda name, _above: (name, files[name])


def test_includes_follow_sparkruns_rules() -> None:
    base = """
model: org/base
runtime: vllm
container: c
env: {A: 1, B: 1}
metadata: {description: The base.}
overrides: [{one: 1}]
defaults: {speculative_config: {method: mtp, num_speculative_tokens: 3}, port: 1, gone: 1}
"""
    outer = """
include: base
model: org/outer
env: {B: null}
overrides: [{two: 2}]
defaults: {speculative_config: {method: ngram}, gone: null}
command: vllm serve {model} --port {port}
"""
    recipe = read_recipe(outer, "m.yaml", include_from({"base": base}))
    assert (recipe.model, recipe.env, recipe.description) == ("org/outer", {"A": "1"}, "")
    assert recipe.left == {
        "overrides": "settings for one kind of machine are not evaluated: the values of 'defaults' are taken"
    }
    without = read_recipe(outer[: outer.index("command")], "m.yaml", include_from({"base": base}))
    assert without.words == ["--speculative-config", '{"method": "ngram"}', "--port", "1"]


def test_includes_are_bounded() -> None:
    chain = {f"i{n}": f"include: i{n + 1}" for n in range(100)}
    with pytest.raises(RecipeError, match="more than 8 files that include each other"):
        read_recipe("include: i0", "m.yaml", include_from(chain))
    with pytest.raises(RecipeError, match="in a circle"):
        read_recipe("include: a", "m.yaml", include_from({"a": "include: b", "b": "include: a"}))
    with pytest.raises(RecipeError, match="'include' must name one recipe"):
        read_recipe("include: [a, b]", "m.yaml", include_from({}))


def test_other_yaml_is_told_apart_from_broken_recipes() -> None:
    for text in ("- a", "services: {}", "a: 1"):
        with pytest.raises(NoRecipeError):
            read_recipe(text, "x.yaml")


def test_both_brace_styles_of_version_2() -> None:
    doubled = SPARKRUN.replace("'{spec}'", '\'{spec}\' --compilation-config \'{{"mode":{k},"pass_config":{{"a":1}}}}\'')
    assert read_command(command_of(read_recipe(doubled, "m")), OPTIONS).serve["compilation-config"] == {
        "mode": 3,
        "pass_config": {"a": 1},
    }


def test_several_images_are_named() -> None:
    recipe = read_recipe(
        "model: org/m\nruntime: vllm\ncontainers: [{image: a/b:1}, c/d:2]\ncommand: vllm serve {model}", "m.yaml"
    )
    assert (recipe.container, recipe.left) == ("a/b:1", {"containers": "the first is taken; left out: c/d:2"})
