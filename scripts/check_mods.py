# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402
"""Hold every mod against the real source of vLLM wheels.

    python3 scripts/check_mods.py --python PY FILE.whl...

For each wheel and each mod that covers its version: plan, apply with the script that the image
build runs, probe, apply once more (nothing may change), and then ask the patched vLLM's own
parser whether it has the options that the manifest promises, with the promised type, and whether
it refuses those that exclude each other. `--python` is an interpreter with vLLM's dependencies;
torch for the CPU will do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / ".collections")]

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version
from scripts import vllm_flags

APPLY = REPO / "roles" / "image" / "files" / "apply_mods.py"
SAMPLES = {"int": "7", "float": "0.5", "json": "{}", "human_int": "7k", "human_int_or_auto": "7k"}
# Prints what the parser, or the engine's arguments made from it, say to these words.
PARSE = """
import sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
root = FlexibleArgumentParser()
parser = ServeSubcommand().subparser_init(root.add_subparsers(dest="subparser"))
AsyncEngineArgs.from_cli_args(parser.parse_args(["MODEL", *sys.argv[1:]]))
"""


def main(argv: list[str] | None = None) -> int:
    """Check every wheel; return 1 when any mod fails on any of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--python", default=sys.executable, help="has vLLM's dependencies")
    args = parser.parse_args(argv)
    failures = [each for wheel in args.wheels for each in check_wheel(wheel, args.python)]
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def check_wheel(wheel: Path, python: str) -> list[str]:
    """Return what is wrong with the mods on one wheel."""
    text = vllm_flags.wheel_version(wheel.name)
    version = vllm_version.parse(text)
    known = mod_files.load_mods()
    covering = []
    for mod in known.values():
        try:
            mods_logic.choose(mod, version)
            covering.append(mod)
        except mods_logic.ModsError as problem:
            print(f"{text}: {problem}")
    plan = mods_logic.mods_plan(known, [mod.name for mod in covering], text)
    with tempfile.TemporaryDirectory(prefix="check_mods_") as folder:
        site, context = Path(folder, "site"), Path(folder, "mods")
        vllm_flags.unpack(wheel, site)
        shutil.copytree(mod_files.OWN_MODS, context)
        (context / "plan.json").write_text(mods_logic.plan_document(plan, text), encoding="utf-8")
        command = [python, str(APPLY), "--mods-dir", str(context), "--site-packages", str(site)]
        command += ["--record", str(Path(folder, "mods.json"))]
        for attempt in ("first", "second"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return [f"{text}, {attempt} run: {done.stderr.strip()}"]
            if attempt == "second" and "applied with" in done.stdout:
                return [f"{text}: the second run applied something again:\n{done.stdout}"]
            print(f"{text}, {attempt} run:\n{done.stdout.strip()}")
        env = {**os.environ, "PYTHONPATH": str(site)}
        table = json.loads(vllm_flags.run_dump([python], env))
        failures = [each for mod in covering for each in options_missing(mod, table, text)]
        for mod in covering:
            for option in mod.options:
                alone = [f"--{option.name}", SAMPLES.get(option.kind, "x")]
                if refusal := refused(python, env, alone):
                    failures.append(f"{text}: {' '.join(alone)} is refused: {refusal}")
                for other in option.excludes:
                    entry = find(table, other)
                    if entry is None:
                        continue
                    both = [*alone, f"--{other}", SAMPLES.get(entry["kind"], "x")]
                    if refusal := refused(python, env, both):
                        print(f"{text}: {' '.join(both)}: {refusal}")
                    else:
                        failures.append(f"{text}: {' '.join(both)} is accepted")
        return failures


def options_missing(mod: mods_logic.Mod, table: dict[str, dict[str, dict[str, str]]], text: str) -> list[str]:
    """Return the promised options that the patched parser lacks or has with another type."""
    failures = []
    for option in mod.options:
        found = table["options"].get(option.name, {}).get("kind", "absent")
        wanted = "flag" if option.kind == "bool" else option.kind
        if found != wanted:
            failures.append(f"{text}: {mod.name} promises --{option.name} ({wanted}), it is {found}")
    return failures


def find(table: dict[str, dict[str, dict[str, str]]], name: str) -> dict[str, str] | None:
    """Return a table's entry by name or alias."""
    for key, entry in table["options"].items():
        if name == key or name in entry.get("aliases", ()):
            return entry
    return None


def refused(python: str, env: dict[str, str], words: list[str]) -> str:
    """Return the last line of the refusal, or nothing when vLLM takes these arguments."""
    command = [python, "-c", PARSE, *words]
    quiet = {**env, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=quiet, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


if __name__ == "__main__":
    sys.exit(main())
