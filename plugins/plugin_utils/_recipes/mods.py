# SPDX-License-Identifier: Apache-2.0
"""Mods of recipes: a directory with a script and patches becomes a mod of this project where it is patches.  Pure.

eugr/spark-vllm-docker and sparkrun run a mod's ``run.sh`` in the container before each start. Nothing is run here:
the script is read, and what does more than apply patches of its own directory to vLLM is refused in a sentence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic

SCRIPT = "run.sh"
#: Where a Python of a container keeps its packages.
_PACKAGES = re.compile(r"(?:.*/)?(?:dist|site)-packages/(?P<path>.+)")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_FETCHES = ("apt-get", "apt", "curl", "git clone", "pip", "pip3", "uv", "wget")
_NOTHING = ("echo", "exit", "printf", "set", "true", ":")
#: Options of patch and git apply that change nothing about what is applied where.
_HARMLESS = re.compile(
    r"-[NRstfvE]*[Nstfv]|--(?:forward|silent|quiet|batch|force|verbose|unsafe-paths|whitespace=\w+|fuzz=\d+)"
)
#: Added lines of a file that the probe looks for.
_PROBED_LINES = 5


class ModError(ValueError):
    """A mod that is no mere patch; the message says what it does besides, as the end of a sentence."""


@dataclass(frozen=True)
class ImportedMod:
    """A mod of another project as one of this one.

    :ivar files: path below its directory -> text.
    """

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class _Patch:
    """One call of patch or git apply: which file, where, with how many leading directories removed."""

    file: str
    directory: str
    strip: int


def mod_name(text: str) -> str:
    """Return the name of a recipe's mod as one of this project: the last part of its path."""
    return re.sub(r"[^a-z0-9]+", "-", text.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")


def convert(mod: str, files: Mapping[str, str], release: str, origin: str) -> ImportedMod:
    """Return a mod for one release of vLLM.

    :param mod: as the recipe names it.
    :param files: name -> text of its script and patches.
    :param origin: the project that it is of.
    :raises ModError: it does more than apply patches to vLLM, or its patches are damaged.
    """
    if SCRIPT not in files:
        raise ModError(f"has no {SCRIPT}")
    calls = list(_calls(files[SCRIPT]))
    if not calls:
        raise ModError(f"applies no patch: its {SCRIPT} does nothing that can be read here")
    name, parts = mod_name(mod), []
    for call in calls:
        if call.file not in files:
            raise ModError(f"applies {call.file[:80]}, which its directory does not have")
        parts.append(_relative(files[call.file], call))
    text = "".join(parts)
    wrong = mods_logic.patch_errors(text)
    if wrong:
        raise ModError(f"has a patch that {wrong[0]}")
    patch = f"patches/{release}.patch"
    manifest = {
        "name": name,
        "summary": f"The mod {name} of {origin}.",
        "why": "A recipe of that project asks for it; its patches were taken as they are and were not run here.",
        "versions": [{"vllm": f"=={release}", "patch": patch}],
        "adds": {},
        "probe": {"python": _probe(text)},
    }
    _mod, errors = mods_logic.parse_manifest(manifest, name, {patch: text})
    if errors:
        raise ModError(f"makes no mod: {errors[0]}")
    written = "---\n" + yaml.safe_dump(manifest, sort_keys=False, width=110)
    return ImportedMod(name, {"manifest.yml": written, patch: f"# {name}, a mod of {origin}\n{text}"})


def _calls(script: str) -> Iterator[_Patch]:
    """Yield what a script applies, in order.

    :raises ModError: it does anything else.
    """
    place = ""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            raise ModError(f"has a line in {SCRIPT} that cannot be read: {line.strip()[:80]!r}") from None
        for command in _commands(words):
            if command[0] == "cd" and len(command) == 2:
                place = "" if _in_mod(command[1]) is not None else command[1]
            elif command[0] == "patch":
                yield _patch(command[1:], place, line)
            elif command[0] == "git" and "apply" in command:
                yield from _git_apply(command[1:], place, line)
            elif command[0] not in _NOTHING or ">" in command or ">>" in command:
                fetched = next((each for each in _FETCHES if " ".join(command).startswith(f"{each} ")), "")
                what = f"fetches with {fetched}" if fetched else "does more than apply patches"
                raise ModError(f"{what}: {line.strip()[:80]!r}")


def _commands(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield the commands of a line that run one after the other."""
    command: list[str] = []
    for word in [*words, ";"]:
        if word in ("&&", ";"):
            if command:
                yield command
            command = []
        else:
            command.append(word)


def _in_mod(word: str) -> str | None:
    """Return a path below the mod's directory, or None for one elsewhere."""
    for start in ("$WORKSPACE_DIR", "${WORKSPACE_DIR}", "$PWD", "."):
        if word == start:
            return ""
        if word.startswith(f"{start}/"):
            return word[len(start) + 1 :]
    return None if word.startswith(("/", "$", "~", "..")) else word


def _file(word: str, place: str, line: str) -> str:
    found = _in_mod(word)
    if found is None or (place and not word.startswith("$")):
        raise ModError(f"applies a file from elsewhere: {line.strip()[:80]!r}")
    return found


def _patch(words: Sequence[str], place: str, line: str) -> _Patch:
    file, directory, strip = "", place, None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, _equals, value = word.partition("=")
        if word in ("<", "-i") or key == "--input":
            file = _file(value or (rest.pop(0) if rest else ""), place, line)
        elif word == "-d" or key == "--directory":
            directory = value or (rest.pop(0) if rest else "")
        elif number := re.fullmatch(r"(?:-p|--strip=)(\d+)", word):
            strip = int(number[1])
        elif not _HARMLESS.fullmatch(word) or "R" in word:
            raise ModError(f"does more than apply patches: {line.strip()[:80]!r}")
    if not file or strip is None:
        raise ModError(f"applies a patch without its file or -p: {line.strip()[:80]!r}")
    return _Patch(file, directory, strip)


def _git_apply(words: Sequence[str], place: str, line: str) -> Iterator[_Patch]:
    files, directory, strip = [], place, 1
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-C":
            directory = rest.pop(0) if rest else ""
        elif word.startswith("--directory="):
            directory = str(PurePosixPath(directory or "/", word.partition("=")[2]))
        elif number := re.fullmatch(r"-p(\d+)", word):
            strip = int(number[1])
        elif word.startswith("-"):
            if not _HARMLESS.fullmatch(word):
                raise ModError(f"does more than apply patches: {line.strip()[:80]!r}")
        elif word != "apply":
            files.append(_file(word, "", line))
    if not files:
        raise ModError(f"applies no file: {line.strip()[:80]!r}")
    for file in files:
        yield _Patch(file, directory, strip)


def _path(header: str, call: _Patch) -> str:
    """Return the path of a patch's header relative to the packages."""
    name = header.split("\t", maxsplit=1)[0].strip()
    if name == "/dev/null":
        return name
    parts = PurePosixPath(name.lstrip("/")).parts[call.strip :]
    full = str(PurePosixPath(call.directory or "/", *parts))
    found = _PACKAGES.fullmatch(full)
    path = found["path"] if found else full.lstrip("/") if not call.directory else full
    if not path.startswith("vllm/") or ".." in PurePosixPath(path).parts:
        raise ModError(f"changes {full[:100]}, which is not vLLM in its packages")
    return path


def _relative(text: str, call: _Patch) -> str:
    """Return a patch with paths relative to the packages, without prose and git's own lines.

    :raises ModError: it renames, is binary, or changes something else than vLLM.
    """
    found: list[str] = []
    old_left = new_left = 0
    for line in text.replace("\r\n", "\n").splitlines():
        if old_left > 0 or new_left > 0 or line.startswith("\\ "):
            old_left -= line[:1] in ("-", " ", "")
            new_left -= line[:1] in ("+", " ", "")
            found.append(line or " ")
        elif hunk := _HUNK.match(line):
            old_left, new_left = (int(each or 1) for each in hunk.groups())
            found.append(line)
        elif line.startswith(("--- ", "+++ ")):
            path = _path(line[4:], call)
            side = "" if path == "/dev/null" else "a/" if line.startswith("-") else "b/"
            found.append(f"{line[:4]}{side}{path}")
        elif line.startswith(("rename ", "copy ", "GIT binary patch", "Binary files ")):
            raise ModError(f"has a patch that renames, copies or is binary ({call.file[:80]})")
    return "\n".join(found) + "\n"


def _probe(text: str) -> str:
    """Return Python that sees whether a patch is in: by lines that it adds, else by those that it removes."""
    added: dict[str, list[str]] = {}
    removed: dict[str, list[str]] = {}
    target = ""
    for line in text.splitlines():
        if line.startswith("+++ "):
            target = line[4:].removeprefix("b/")
        elif target != "/dev/null" and line[:1] in "+-" and not line.startswith("--- ") and line[1:].strip():
            (added if line[0] == "+" else removed).setdefault(target, []).append(line[1:])
    gone = {name: lines for name, lines in removed.items() if name not in added}
    chosen = {name: sorted(lines, key=len)[-_PROBED_LINES:] for name, lines in added.items()}
    return "\n".join(
        [
            "import importlib.util",
            "import pathlib",
            'root = pathlib.Path(importlib.util.find_spec("vllm").origin).parents[1]',
            f"for name, lines in {chosen!r}.items():",
            "    text = (root / name).read_text()",
            '    assert all(line in text for line in lines), f"{name} is not patched"',
            *(
                [
                    f"for name, lines in { ({name: lines[:1] for name, lines in gone.items()})!r}.items():",
                    "    text = (root / name).read_text()",
                    '    assert not all(line in text for line in lines), f"{name} is not patched"',
                ]
                if gone
                else []
            ),
            "",
        ]
    )
