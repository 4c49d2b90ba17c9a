# SPDX-License-Identifier: Apache-2.0
"""Import recipes: from what ``-e recipe=`` names to models, their files and a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import DocumentError, render
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.loading import NoRecipeError, RecipeError
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mapping import Imported, Known, slug, to_model
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.source import Source, find

#: The mods that the collection ships.
_MODS = Path(__file__).parents[3] / "mods"


@dataclass(frozen=True)
class Row:
    """What became of one recipe file.

    :ivar file: its name below the directory that was asked for.
    :ivar imported: the model; None when there is only a sentence.
    """

    file: str
    imported: Imported | None
    sentence: str = ""


def known_here(
    images: Mapping[str, Any], catalogue: Iterable[str] = (), source_root: str = "", writes_mods: bool = False
) -> Known:
    """Return what this machine knows besides the recipes.

    :param source_root: directory with the weights, one below it for each organisation and repository.
    :param writes_mods: whether mods made of patches are written.
    """
    models: dict[str, Mapping[str, Any]] = {}
    for path in (each for folder in catalogue for each in sorted(Path(folder).glob("model_*.y*ml"))):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # a model file that cannot be read is reported when it is used
        if isinstance(content, Mapping) and isinstance(content.get("model_spec"), Mapping):
            models[str(path)] = content["model_spec"]
    root = Path(source_root).expanduser() if source_root else None
    mods = sorted(path.parent.name for path in _MODS.glob("*/manifest.yml"))
    return Known(images, models, mods, lambda repo: _size_gib(root / repo) if root else 0.0, writes_mods=writes_mods)


def _size_gib(folder: Path) -> float:
    """Return the size of the weights in a directory, in GiB; 0 when there are none."""
    try:
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except OSError:
        return 0.0
    return round(size / 2**30, 3) or (0.001 if size else 0.0)


def read_one(target: str, known: Known, name: str = "", image: str = "") -> Imported:
    """Return one recipe as a model.

    :param target: what ``-e recipe=`` names; it must be one recipe.
    :raises RecipeError: it is several, none, or none that can be run here.
    """
    source = find(target)
    if source.several:
        raise RecipeError(
            f"{target} is a directory of {len(source.files)} YAML files; name one recipe of it: "
            f"{target.rstrip('/')}:<recipe>."
        )
    return _read(source, source.files[0], known, name, image)


def _read(source: Source, path: Path, known: Known, name: str, image: str) -> Imported:
    return to_model(source.read(path), source.name(path), replace(known, mod_files=source.mod_files), name, image)


def read_all(target: str, known: Known, name: str = "", image: str = "") -> list[Row]:
    """Return what becomes of every recipe that ``-e recipe=`` names; other YAML files of a directory are left out.

    :raises RecipeError: nothing there is a recipe, or the one recipe cannot be imported.
    """
    source = find(target)
    if not source.several:
        path = source.files[0]
        return [Row(source.name(path), _read(source, path, known, name, image))]
    if name:
        raise RecipeError(f"import_recipe_name names one model, and {target} is a directory of recipes.")
    rows: list[Row] = []
    taken: dict[str, str] = {}
    for path in source.files:
        file = source.name(path)
        try:
            found = _read(source, path, known, "", image)
        except NoRecipeError:
            continue
        except RecipeError as problem:
            rows.append(Row(file, None, str(problem)))
            continue
        group = ms.group_name(found.spec["name"])
        own = slug(path.stem)
        if group in taken and own and ms.group_name(own) not in taken:
            found = _named(found, own, taken[group])
            group = ms.group_name(own)
        if group in taken:
            rows.append(
                Row(
                    file,
                    None,
                    f"{file} would be model {found.spec['name']}, as {taken[group]} is; import it alone, "
                    "with import_recipe_name.",
                )
            )
            continue
        taken[group] = file
        rows.append(Row(file, found))
    if not rows:
        raise RecipeError(f"{target} holds no recipe; its {len(source.files)} YAML files are something else.")
    return rows


def _named(imported: Imported, name: str, other: str) -> Imported:
    """Return a model under the name of its file, as another recipe has its own."""
    line = f"name: {imported.spec['name']} is that of {other} too; the file's name is taken."
    return replace(imported, spec={**imported.spec, "name": name}, left=[*imported.left, line])


def document(row_file: str, imported: Imported) -> str:
    """Return the text of the model file.

    :raises RecipeError: a value that a model file cannot carry.
    """
    recipe = imported.recipe
    header = [f"Imported from the recipe {row_file} ({recipe.origin})."]
    if imported.left:
        header += ["What did not carry over, or otherwise than written:", *(f"- {each}" for each in imported.left)]
    try:
        return render(imported.spec, imported.reasons, header)
    except DocumentError as problem:
        raise RecipeError(f"{row_file}: {problem}") from None


def files_of(rows: Iterable[Row], directory: Path, taken: Iterable[str]) -> tuple[list[dict[str, str]], list[Row]]:
    """Return (``name``, ``path`` and ``content`` of each model file, the rows with a sentence where there is none).

    :param taken: names of the collection's own models, whose files would be read beside one of the same name.
    :raises RecipeError: there is only one recipe, and it cannot be written.
    """
    rows, own = list(rows), {ms.group_name(name) for name in taken}
    files: list[dict[str, str]] = []
    done: list[Row] = []
    for row in rows:
        if row.imported is None:
            done.append(row)
            continue
        name = row.imported.spec["name"]
        try:
            if ms.group_name(name) in own:
                raise RecipeError(
                    f"{row.file} would be model {name}, which this project brings itself; import it alone, with "
                    "import_recipe_name."
                )
            content = document(row.file, row.imported)
        except RecipeError as problem:
            if len(rows) == 1:
                raise
            done.append(Row(row.file, None, str(problem)))
            continue
        files.append({"name": name, "path": str(directory / f"{ms.group_name(name)}.yml"), "content": content})
        done.append(row)
    return files, done


def mods_of(rows: Iterable[Row], directory: Path) -> list[dict[str, str]]:
    """Return ``path`` and ``content`` of each file of the mods that the models of some rows need.

    :raises RecipeError: two recipes have different mods of one name.
    """
    found: dict[str, str] = {}
    for row in rows:
        for mod in row.imported.mods if row.imported else ():
            for name, text in mod.files.items():
                path = str(directory / mod.name / name)
                if found.setdefault(path, text) != text:
                    raise RecipeError(
                        f"{row.file} has another mod {mod.name} than a recipe before it; import it alone."
                    )
    return [{"path": path, "content": text} for path, text in found.items()]


def report(rows: Iterable[Row]) -> list[str]:
    """Return what was imported and what was not, in lines for the owner."""
    rows = list(rows)
    lines: list[str] = []
    if len(rows) > 1:
        width = max(len(row.file) for row in rows)
        good = sum(1 for row in rows if row.imported)
        lines.append(f"{good} of {len(rows)} recipes are models now; of the others, one sentence each.")
        for row in rows:
            said = row.imported.spec["name"] if row.imported else row.sentence.removeprefix(row.file).strip(" :")
            lines.append(f"  {row.file:<{width}}  {said}")
    for row in rows:
        if row.imported:
            lines += one(row.file, row.imported)
    return lines


def one(file: str, imported: Imported) -> list[str]:
    """Return what one recipe became: what carried over, what did not and why, what the checks have a word about."""
    spec = imported.spec
    carried = [f"{len(spec['serve'])} options", f"{len(spec['env'])} variables"]
    carried += [f"mod {name}" for name in spec["mods"]]
    lines = [
        f"{file} ({imported.recipe.origin}) -> model {spec['name']}: {spec['repo']} on {spec['nodes']} node(s), engine "
        f"{spec['engine']}, image {spec['image']}.",
        f"  Carried over: {', '.join(carried)}: {', '.join(spec['serve']) or 'no option'}"
        + (f"; {', '.join(spec['env'])}." if spec["env"] else "."),
    ]
    lines += [f"  Not carried over, or otherwise: {each}" for each in imported.left] or ["  Nothing was left out."]
    return lines + [f"  Note: {each}" for each in imported.notes]
