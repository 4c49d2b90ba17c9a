# SPDX-License-Identifier: Apache-2.0
"""Build the programs that run on a node outside Ansible's modules: one archive each, of the collection's own code.

An archive is a zip file that Python runs: ``python3 /usr/local/lib/gb10/gb10-engine-0123456789ab.pyz VERB …``.  It
holds the modules of module_utils that its verbs import, under their full dotted names, and nothing else; so its digest
changes when the code that it runs has changed, and at no other time.
"""

from __future__ import annotations

import ast
import functools
import io
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._program import archive
from ansible_collections.gb10.cluster.plugins.module_utils._program.main import PACKAGE

MODULE_UTILS = Path(__file__).resolve().parents[1] / "module_utils"
#: Program → verb → module below module_utils; the module's ``main(argv)`` returns an exit status or None.
PROGRAMS: dict[str, dict[str, str]] = {
    # What an engine's unit and container run; a change of any of it restarts the engine at the next `serve`.
    "engine": {"prestart": "_engine.prestart", "entry": "_engine.entry", "stopped": "_engine.stopped"},
    "check": {"check": "_engine.check"},
    "collect": {"collect": "_monitor.collect"},
    "image": {"image": "_image.command"},
    "swap": {"guard": "_engine.guard"},
    "watch": {"watch": "_probe.watch"},
    "weights": {"move": "_weights.mover"},
}
#: What the image of an engine brings; imported inside functions alone.
OF_THE_IMAGE = frozenset({"ray", "vllm"})
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = """\
from {package}._program.main import main

main({verbs!r})
"""


class ProgramError(Exception):
    """The archive cannot be built; the message names the module and the import."""


@dataclass(frozen=True)
class Archive:
    """A program as one file; ``digest`` is the one in its name."""

    name: str
    digest: str
    data: bytes

    @property
    def path(self) -> str:
        """Where it is on every node."""
        return f"{archive.DIRECTORY}/{self.name}"


def _imports(module: str, source: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, of the standard library none.

    :raises ProgramError: for an import that a node cannot be expected to have.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.ImportFrom) and (node.level or not node.module):
            raise ProgramError(f"{module} imports relative to itself (line {node.lineno}); use the full name")
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in (prefix + alias.name for alias in node.names):
            top = name.partition(".")[0]
            if name.startswith(f"{PACKAGE}."):
                yield name.removeprefix(f"{PACKAGE}.")
            elif top not in sys.stdlib_module_names and top not in OF_THE_IMAGE:
                raise ProgramError(
                    f"{module} imports {name} (line {node.lineno}); a program on a node has the standard library and "
                    "module_utils, nothing else"
                )


def _members(roots: list[str]) -> dict[str, bytes]:
    """Return module → source of the roots and of everything of module_utils that they import."""
    found: dict[str, bytes] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        # `from package.module import name` and `from package import module` look the same.
        if not (MODULE_UTILS / f"{name.replace('.', '/')}.py").is_file():
            name = name.rpartition(".")[0]
        path = MODULE_UTILS / f"{name.replace('.', '/')}.py"
        if not path.is_file():
            raise ProgramError(f"there is no module {path.relative_to(MODULE_UTILS.parent)}")
        if name not in found:
            found[name] = path.read_bytes()
            todo += _imports(name, found[name].decode())
    return found


def _zip(files: dict[str, bytes]) -> bytes:
    """Return a zip archive that depends on names and contents alone; stored, because zlib's output varies."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            target.writestr(entry, files[name])
    return buffer.getvalue()


def pack(verbs: dict[str, str], name: str) -> Archive:
    """Build an archive of some verbs; see `build`."""
    folder = PACKAGE.replace(".", "/")
    files = {"__main__.py": _MAIN.format(package=PACKAGE, verbs=dict(sorted(verbs.items()))).encode()}
    for module, source in _members(["_program.main", *verbs.values()]).items():
        path = f"{folder}/{module.replace('.', '/')}"
        files[f"{path}.py"] = source
        # Packages proper: one that is installed on the node as well then does not take part.
        for parent in list(Path(path).parents)[:-1]:
            files[f"{parent}/__init__.py"] = b""
    data = _zip(files)
    digest = archive.digest_of(data)
    return Archive(f"gb10-{name}-{digest}.pyz", digest, data)


@functools.cache
def build(program: str) -> Archive:
    """Return the archive of a program; the same code gives the same bytes on every control node.

    :param program: a key of `PROGRAMS`.
    :raises ProgramError: no such program, or one of its modules imports what a node does not have.
    """
    if program not in PROGRAMS:
        raise ProgramError(f"there is no program {program!r}; expected one of {', '.join(sorted(PROGRAMS))}")
    return pack(PROGRAMS[program], program)
