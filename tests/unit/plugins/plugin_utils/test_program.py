# SPDX-License-Identifier: Apache-2.0
"""Program archives: what is in them, that they need nothing but Python, and that two never disturb each other."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._program import archive as archives
from ansible_collections.gb10.cluster.plugins.plugin_utils import _program as program

PACKAGE = "ansible_collections/gb10/cluster/plugins/module_utils"
VERBS = sorted((name, verb) for name, verbs in program.PROGRAMS.items() for verb in verbs)


def put(directory: Path, built: program.Archive) -> Path:
    archives.install(directory / built.name, built.data)
    return directory / built.name


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", "-S", "-B", *map(str, command)]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module_utils of our own, with a program of two verbs, one of which imports lazily."""
    root = tmp_path / "module_utils"
    (root / "_program").mkdir(parents=True)
    (root / "_own").mkdir()
    (root / "_program" / "main.py").write_bytes((program.MODULE_UTILS / "_program" / "main.py").read_bytes())
    (root / "_own" / "part.py").write_text('WORD = "old"\n')
    (root / "_own" / "waits.py").write_text(
        '"""Import something late."""\n'
        "import sys\n"
        "def main(argv):\n"
        '    print("runs", flush=True)\n'
        "    sys.stdin.readline()\n"
        f"    from {PACKAGE.replace('/', '.')}._own.part import WORD\n"
        "    print(WORD, flush=True)\n"
        "    return 3\n"
    )
    (root / "_own" / "other.py").write_text('"""Do nothing."""\ndef main(argv):\n    print(argv)\n')
    monkeypatch.setattr(program, "MODULE_UTILS", root)
    return root


OWN = {"waits": "_own.waits", "other": "_own.other"}


@pytest.mark.parametrize(("name", "verb"), VERBS)
def test_every_verb_runs_without_ansible_or_site_packages(tmp_path: Path, name: str, verb: str) -> None:
    path = put(tmp_path, program.build(name))
    done = run(path, verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: gb10 {verb}")
    # What is imported at the start is the standard library's or the archive's.
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); import {PACKAGE.replace('/', '.')}.{module_of(name, verb)}; "
    )
    code += "print([name for name in sys.modules if name.partition('.')[0] in ('ansible', 'ray', 'vllm')])"
    assert run("-c", code).stdout == "[]\n"


def module_of(name: str, verb: str) -> str:
    return program.PROGRAMS[name][verb]


@pytest.mark.parametrize("name", sorted(program.PROGRAMS))
def test_an_archive_holds_the_collections_own_code_under_its_own_names(name: str) -> None:
    built = program.build(name)
    with zipfile.ZipFile(io.BytesIO(built.data)) as opened:
        members = opened.namelist()
        assert members == sorted(members)
        for member in members:
            source = opened.read(member)
            if member.startswith(PACKAGE) and not member.endswith("__init__.py"):
                assert source == (program.MODULE_UTILS.parents[1] / member.split("cluster/", 1)[1]).read_bytes()
            tops = {
                name.partition(".")[0]
                for node in ast.walk(ast.parse(source))
                for name in (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import)
                    else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                )
            }  # fmt: skip
            assert "ansible" not in tops, member
    assert built.name == f"gb10-{name}-{built.digest}.pyz"
    assert archives.NAME.fullmatch(built.name)
    assert built.path == f"/usr/local/lib/gb10/{built.name}"


def test_the_bytes_depend_on_the_code_alone(collection: Path) -> None:
    first = program.pack(OWN, "own")
    os.utime(collection / "_own" / "part.py", (1, 1))
    (collection / "_own" / "unrelated.py").write_text("")
    assert program.pack(dict(reversed(OWN.items())), "own") == first
    (collection / "_own" / "part.py").write_text('WORD = "new"\n')
    assert program.pack(OWN, "own").digest != first.digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from ansible.module_utils.urls import open_url", "imports ansible.module_utils.urls.open_url (line 1)"),
        ("import json\nimport yaml", "imports yaml (line 2)"),
        ("from . import part", "relative to itself (line 1)"),
        (f"from {PACKAGE.replace('/', '.')}._absent import x", "there is no module module_utils/_absent.py"),
    ],
)
def test_what_a_node_does_not_have_is_refused(collection: Path, source: str, message: str) -> None:
    (collection / "_own" / "other.py").write_text(source)
    with pytest.raises(program.ProgramError) as caught:
        program.pack(OWN, "own")
    assert message in str(caught.value)


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(program.ProgramError, match=r"no program 'wacht'; expected one of .*watch"):
        program.build("wacht")


@pytest.mark.usefixtures("collection")
def test_verbs(tmp_path: Path) -> None:
    path = put(tmp_path, program.pack(OWN, "own"))
    assert (run(path, "other", "a", "--b").stdout, run(path, "other").returncode) == ("['a', '--b']\n", 0)
    listed = run(path, "--help").stdout
    assert "waits      Import something late." in listed
    for words, message in ([], "no verb was given"), (["wait"], "unknown verb 'wait'"):
        done = run(path, *words)
        assert (done.returncode, done.stderr) == (2, f"gb10: {message}; expected one of other, waits\n")


def test_a_process_of_the_old_archive_is_not_disturbed_by_a_new_one(collection: Path, tmp_path: Path) -> None:
    """Started from the old archive, it imports after the new one is there and after retention has run."""
    old = put(tmp_path / "lib", program.pack(OWN, "own"))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(old), "waits"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "runs\n"
        (collection / "_own" / "part.py").write_text('WORD = "new"\n' + "# longer\n" * 50)
        new = put(tmp_path / "lib", program.pack(OWN, "own"))
        assert new != old
        for path in (old, new):
            os.utime(path, (1, 1))

        def found() -> list[Path]:
            candidates = archives.candidates(tmp_path / "lib", new.name, time.time())
            return archives.unused(candidates, archives.mentions(Path("/proc"), []))

        assert found() == []
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "old\n"
        assert process.wait() == 3
    assert found() == [old]
    archives.remove(found())
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == [new.name]
