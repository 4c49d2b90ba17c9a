# SPDX-License-Identifier: Apache-2.0
"""Read what a model's repository says of itself: file names, sizes and small files.  Does I/O; reads no weights.

The repository is on a hub or in a directory of the control node.  What it holds was written by others: every file is
read up to a limit, and what is no JSON object is reported as a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.gb10.cluster.plugins.module_utils._model.spec import REPO
from ansible_collections.gb10.cluster.plugins.module_utils._weights import folder as folders
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest, needs
from ansible_collections.gb10.cluster.plugins.module_utils._weights.hub import Hub, HubError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
#: Small files that are read where they are there; each is a JSON object.
DOCUMENTS = (
    "generation_config.json",
    "tokenizer_config.json",
    "hf_quant_config.json",
    "chat_template.json",
    "1_Pooling/config.json",
)
TEMPLATE = "chat_template.jinja"
MAX_TEXT_BYTES = 4 * 2**20

_SNAPSHOT = "models--"


class RepositoryError(Exception):
    """A repository that no model file can be made of; the message is one sentence for the owner."""


@dataclass(frozen=True)
class Repository:
    """What was read of one revision.

    :ivar repo: ``organisation/name``, also the directory below the weights root.
    :ivar revision: the commit; ``main`` where a directory has no note of it.
    :ivar where: the hub's address or the directory, for sentences.
    :ivar weights: the files that vLLM would load, sorted.
    :ivar index_bytes: ``metadata.total_size`` of the index; None where there is no such figure.
    :ivar tensors: names of the index; None without one.
    :ivar documents: the files of DOCUMENTS that are there, by name.
    :ivar template: the text of chat_template.jinja; empty without it.
    """

    repo: str
    revision: str
    where: str
    sizes: Mapping[str, int]
    weights: tuple[str, ...]
    config: Mapping[str, Any]
    index_bytes: int | None = None
    tensors: frozenset[str] | None = None
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    template: str = ""

    @property
    def weights_bytes(self) -> int:
        """Size of all weight files together."""
        return sum(self.sizes[name] for name in self.weights)

    @property
    def text(self) -> Mapping[str, Any]:
        """What config.json says of the language model, also of one that other kinds of input go through."""
        found = self.config.get("text_config")
        return found if isinstance(found, Mapping) else self.config


def is_directory(repo: str) -> bool:
    """Tell whether ``-e repo=`` names a directory of the control node: it begins as a path does."""
    return repo.startswith(("/", ".", "~"))


def read(repo: str, revision: str, endpoint: str, token: str, source_root: str) -> Repository:
    """Return what a repository says of itself.

    :param repo: ``organisation/name`` on the hub, or a directory below ``source_root``.
    :param revision: branch, tag or commit; ``main`` when empty.
    :param endpoint: the hub's address.
    :param token: for models that need one; it goes to the hub's own host only.
    :param source_root: where the control node keeps models, as ``gb10_source_root``.
    :raises RepositoryError: it is not there, not allowed, not readable or not complete.
    """
    if is_directory(repo):
        return _read_directory(Path(repo).expanduser(), revision, Path(source_root).expanduser())
    if not REPO.fullmatch(repo):
        raise RepositoryError(
            f"repo is {repo!r}, which is no <organisation>/<name> of a hub; a directory begins with /, ./ or ~."
        )
    hub = Hub(endpoint, repo, revision or "main", token)
    try:
        return _read_hub(hub)
    except HubError as problem:
        raise RepositoryError(str(problem)) from problem
    except (HTTPException, OSError) as problem:
        raise RepositoryError(
            f"{hub.base} broke off while {repo} was read ({type(problem).__name__}); run again."
        ) from problem


def _read_hub(hub: Hub) -> Repository:
    commit, files = hub.files()

    def text_of(name: str) -> str:
        with hub.open(f"{quote(hub.repo)}/resolve/{commit}/{quote(name)}") as reply:
            data: bytes = reply.read(MAX_TEXT_BYTES)
        return data.decode("utf-8", "replace")

    sizes = {name: file.size for name, file in files.items()}
    return _assemble(
        hub.repo, commit, f"{hub.base}/{hub.repo}", sizes, lambda name: hub.get_json(commit, name), text_of
    )


def _read_directory(path: Path, revision: str, root: Path) -> Repository:
    if not path.is_dir():
        raise RepositoryError(f"{path} is no directory of the control node.")
    path, root = path.resolve(), root.resolve()
    repo = _repo_of(path, root)
    held = folders.revision_held(path)
    if revision and revision not in ("main", held):
        raise RepositoryError(f"{path} holds revision {held or 'unknown'}, not {revision}: download that one.")
    found = folders.walk(path, repo)
    if found.errors:
        raise RepositoryError(f"{path}: {found.errors[0]}")

    def json_of(name: str) -> Any:
        value, wrong = folders.read_index(found.files[name])
        if wrong:
            raise RepositoryError(f"{path}: {wrong}")
        return value

    def text_of(name: str) -> str:
        with found.files[name].open("rb") as handle:
            return handle.read(MAX_TEXT_BYTES).decode("utf-8", "replace")

    repository = _assemble(repo, held or "main", str(path), found.sizes, json_of, text_of)
    for name in repository.weights:
        wrong = needs.safetensors_error(name, found.sizes[name], folders.header(found.files[name]))
        if wrong:
            raise RepositoryError(f"{path}: {wrong}")
    return repository


def _repo_of(path: Path, root: Path) -> str:
    """Return the repository that a directory holds, from where it lies below the root of all models."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if parts[:1] == ("hub",):
        parts = parts[1:]
    if len(parts) == 3 and parts[0].startswith(_SNAPSHOT) and parts[1] == "snapshots":
        parts = tuple(parts[0].removeprefix(_SNAPSHOT).split("--", 1))
    repo = "/".join(parts)
    if len(parts) != 2 or not REPO.fullmatch(repo):
        raise RepositoryError(
            f"{path} is not <organisation>/<name> below gb10_source_root ({root}), where its weights would be "
            "transferred from: move it there, or set gb10_source_root."
        )
    return repo


def _without_config(sizes: Mapping[str, int]) -> str:
    """Return what a repository without config.json is, as the end of a sentence."""
    for name, what in (
        (ADAPTER, "it is an adapter of another model; add that one, its base model"),
        ("model_index.json", "it is a pipeline of diffusers, which vLLM does not serve"),
        ("params.json", "it has Mistral's own form alone (params.json), which is not read here"),
    ):
        if name in sizes:
            return what
    if any(name.endswith(".gguf") for name in sizes):
        return "its weights are .gguf files; take a repository with safetensors"
    return "it is no model that vLLM's own classes can load"


def _assemble(
    repo: str,
    revision: str,
    where: str,
    sizes: Mapping[str, int],
    json_of: Callable[[str], Any],
    text_of: Callable[[str], str],
) -> Repository:
    """Put a repository together, whatever it is read from.

    :raises RepositoryError: it lacks what every model has.
    """

    def object_of(name: str) -> Mapping[str, Any]:
        value = json_of(name)
        if not isinstance(value, Mapping):
            raise RepositoryError(f"{where}: {name} holds no JSON object.")
        return value

    if CONFIG not in sizes:
        raise RepositoryError(f"{where} has no {CONFIG}: {_without_config(sizes)}.")
    config = object_of(CONFIG)
    if isinstance(mlx := config.get("quantization"), Mapping) and {"bits", "group_size"} <= set(mlx):
        raise RepositoryError(f"{where} is quantised for MLX (quantization in {CONFIG}), which vLLM does not read.")
    indexes = {name: object_of(name) for name in needs.INDEXES if name in sizes}
    needed, _left, errors = needs.choose(sizes, indexes)
    errors += [error for error in map(manifest.path_error, needed) if error]
    weights, _same = needs.choose_weights(sizes, indexes, "auto")
    others = sorted(name for name in weights if not name.endswith(".safetensors"))
    if others or not weights:
        kinds = sorted({Path(name).suffix for name in others or sizes if needs.is_weights(name)})
        what = f"its weights are {', '.join(kinds)} files" if kinds else "it has no file with weights"
        raise RepositoryError(f"{where} has no safetensors: {what}. Take a repository with safetensors.")
    if ADAPTER in sizes and all(Path(name).name.startswith("adapter_") for name in weights):
        raise RepositoryError(f"{where} has the weights of an adapter alone ({ADAPTER}): add its base model.")
    if errors:
        raise RepositoryError(f"{where}: {errors[0]}")
    index = indexes.get(needs.INDEX, {}).get("metadata")
    named = indexes.get(needs.INDEX, {}).get("weight_map")
    total = index.get("total_size") if isinstance(index, Mapping) else None
    return Repository(
        repo=repo,
        revision=revision,
        where=where,
        sizes=dict(sizes),
        weights=tuple(sorted(weights)),
        config=config,
        tensors=frozenset(map(str, named)) if isinstance(named, Mapping) else None,
        index_bytes=total if isinstance(total, int) and total > 0 else None,
        documents={name: object_of(name) for name in DOCUMENTS if name in sizes},
        template=text_of(TEMPLATE) if TEMPLATE in sizes else "",
    )


def chat_template(repository: Repository) -> str:
    """Return all chat templates of a repository as one text; empty when it has none."""
    texts = [repository.template]
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = repository.documents.get(name, {}).get("chat_template")
        texts += [found] if isinstance(found, str) else []
        if isinstance(found, list):
            texts += [str(each.get("template", "")) for each in found if isinstance(each, Mapping)]
    return "\n".join(text for text in texts if text)
