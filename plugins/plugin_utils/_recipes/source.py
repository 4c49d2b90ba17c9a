# SPDX-License-Identifier: Apache-2.0
"""Find and read recipe files on the control node: one file, a directory, a registry, one recipe of a registry.

A registry of sparkrun is a checkout with ``.sparkrun/registry.yaml``, which names directories of recipes.  Nothing
outside the directory that was asked for is read, whatever names, links and manifests say.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes import loading
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.formats import read_recipe
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import NoRecipeError, RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mods import SCRIPT
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.record import Recipe

MANIFEST = Path(".sparkrun") / "registry.yaml"
#: Most YAML files that a directory of recipes may hold; vllm-project/recipes has 236.
MAX_FILES = 2000
SUFFIXES = (".yaml", ".yml")
_PATCHES = (".patch", ".diff")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Source:
    """Where recipes are read.

    :ivar root: nothing outside it is read.
    :ivar files: the recipe files, in order.
    :ivar registries: name of a registry of the checkout -> its directory of recipes.
    :ivar several: whether a directory was asked for, rather than one recipe.
    :ivar variant: of the one file; empty for its own default.
    """

    root: Path
    files: list[Path]
    registries: dict[str, Path] = field(default_factory=dict)
    several: bool = False
    variant: str = ""

    def name(self, path: Path) -> str:
        """Return a file's name for messages."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    def read(self, path: Path) -> Recipe:
        """Return the recipe in a file of `files`."""
        return read_recipe(_text(path, self.root), self.name(path), self._include, self.variant)

    def mod_files(self, mod: str) -> dict[str, str]:
        """Return name -> text of the script and the patches in a mod of the checkout; none for a mod elsewhere.

        :raises RecipeError: one of them is a link to elsewhere, too large or no text.
        """
        parts = mod.removeprefix("@").split("/")
        if not all(_NAME.fullmatch(part) for part in parts):
            return {}
        names = ["mods", *parts[-1:]]
        beside = [path.parent / "mods" / parts[-1] for path in self.files[:1]]
        for folder in (self.root.joinpath(*parts), self.root.joinpath(*names), *beside):
            if folder.is_dir() and folder.resolve().is_relative_to(self.root.resolve()):
                kept = [path for path in sorted(folder.iterdir()) if path.name == SCRIPT or path.suffix in _PATCHES]
                return {path.name: _text(path, self.root) for path in kept[:20]}
        return {}

    def _include(self, name: str, above: str) -> tuple[str, str]:
        """Return (name for messages, text) of a file that another one includes; see `loading.Include`."""
        folder, wanted = (self.root / above).parent, name
        if name.startswith("@"):
            registry, _slash, wanted = name[1:].partition("/")
            if registry not in self.registries:
                raise RecipeError(
                    f"{above} includes {name}, a recipe of another registry; import that registry's checkout, or copy "
                    "the file beside this one."
                )
            folder = self.registries[registry]
        parts = wanted.split("/")
        if not all(_NAME.fullmatch(part) for part in parts) or (len(parts) > 1 and not name.startswith("@")):
            raise RecipeError(f"{above} includes {name[:80]!r}, which names no file beside it.")
        names = [wanted] if wanted.endswith(SUFFIXES) else [wanted + suffix for suffix in SUFFIXES]
        for each in names:
            path = folder / each
            if path.exists():
                return self.name(path), _text(path, self.root)
        raise RecipeError(f"{above} includes {name}, and {self.name(folder)} has no such file.")


def _text(path: Path, root: Path) -> str:
    """Return the text of a file below a root.

    :raises RecipeError: it lies elsewhere, is no regular file, is too large, or is no text.
    """
    where = path.name
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            raise RecipeError(f"{where} is a link to {real}, outside {root}; it is not read.")
        with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise RecipeError(f"{where} is no regular file.")
            data = handle.read(loading.MAX_BYTES + 1)
    except OSError as problem:
        raise RecipeError(f"{where} cannot be read: {problem.strerror}.") from None
    except RuntimeError:
        raise RecipeError(f"{where} is a link in a circle.") from None
    if len(data) > loading.MAX_BYTES:
        raise RecipeError(f"{where} is larger than {loading.MAX_BYTES // 1024} KiB, which no recipe is.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{where} is no text in UTF-8.") from None


def find(target: str) -> Source:
    """Return where the recipes lie that ``-e recipe=`` names.

    :param target: a file, a directory, a checkout of a registry, ``<directory>:<recipe>``, or ``<file>:<variant>``.
    :raises RecipeError: there is no such file, directory or recipe.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        return _directory(path)
    if path.exists():
        checkout = next((each for each in path.absolute().parents if (each / MANIFEST).is_file()), None)
        root = checkout or path.absolute().parent
        return Source(root, [path.absolute()], _registries(root))
    folder, colon, wanted = target.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        return _select(_directory(Path(folder).expanduser()), wanted)
    if colon and Path(folder).expanduser().is_file():
        return replace(find(folder), variant=wanted)
    raise RecipeError(
        f"There is no file and no directory {target}. A recipe is a file, a directory, <directory>:<recipe> or "
        f"<file>:<variant>; a relative path counts from {Path.cwd()}."
    )


def _directory(path: Path) -> Source:
    root = path.absolute()
    registries = _registries(root)
    files = list(_below(sorted(set(registries.values())) or [root], root))
    if not files:
        raise RecipeError(f"{path} holds no YAML file.")
    return Source(root, files, registries, several=True)


def _below(folders: Iterable[Path], root: Path) -> Iterator[Path]:
    """Yield the YAML files below some directories, hidden ones and links to directories left out."""
    count = 0
    seen: set[Path] = set()
    for folder in folders:
        for place, names, files in os.walk(folder):
            names[:] = sorted(each for each in names if not each.startswith("."))
            for name in sorted(files):
                path = Path(place) / name
                if name.startswith(".") or not name.endswith(SUFFIXES) or path in seen:
                    continue
                seen.add(path)
                count += 1
                if count > MAX_FILES:
                    raise RecipeError(f"{root} holds more than {MAX_FILES} YAML files; name one of its directories.")
                yield path


def _registries(root: Path) -> dict[str, Path]:
    """Return the registries that a checkout's manifest names; none without one."""
    if not (root / MANIFEST).is_file():
        return {}
    data = loading.parse(_text(root / MANIFEST, root), str(MANIFEST))
    found: dict[str, Path] = {}
    for entry in data.get("registries") or []:
        if not isinstance(entry, dict):
            raise RecipeError(f"{MANIFEST}: 'registries' must be a list of mappings.")
        folder: Any = entry.get("recipes") or entry.get("subpath") or "."
        place = root / str(folder)
        if not place.resolve().is_relative_to(root.resolve()):
            raise RecipeError(
                f"{MANIFEST} names the directory {str(folder)[:80]!r}, outside its checkout; it is not read."
            )
        if place.is_dir():
            found[str(entry.get("name") or folder)] = place
    return found


def _select(source: Source, wanted: str) -> Source:
    """Return the one recipe of a directory that has a name: its file's, with or without directories, or its own."""
    registry, _slash, name = wanted[1:].partition("/") if wanted.startswith("@") else ("", "", wanted)
    files = [
        path
        for path in source.files
        if name in (path.stem, path.name, source.name(path), source.name(path.with_suffix("")))
        and (not registry or path.is_relative_to(source.registries.get(registry, source.root / "\0")))
    ]
    if not files:
        files = [path for path in source.files if _own_name(source, path) == name]
    if len(files) == 1:
        return Source(source.root, files, source.registries)
    listed = ", ".join(source.name(path) for path in (files or source.files)[:20])
    more = f" and {len(source.files) - 20} more" if not files and len(source.files) > 20 else ""
    raise RecipeError(
        f"{source.root} has {len(files)} recipes named {wanted[:80]!r}: {listed}."
        if files
        else f"{source.root} has no recipe named {wanted[:80]!r}. It has: {listed}{more}."
    )


def _own_name(source: Source, path: Path) -> str:
    try:
        return source.read(path).name
    except RecipeError:
        return ""


__all__ = ["MANIFEST", "MAX_FILES", "NoRecipeError", "Source", "find"]
