# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.add_model: a repository becomes a model file; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._model import spec as ms
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import owned, report, source
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import DocumentError, render
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.images import ProposalError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import (
    Cluster,
    Wanted,
    model_name,
    propose,
)

#: What ends in one sentence.
REFUSALS = (source.RepositoryError, ProposalError, DocumentError)


def other_models(folders: Iterable[str]) -> dict[Path, dict[str, Any]]:
    """Return model file → its model_spec for the files that can be read without Ansible."""
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(path.resolve() for folder in folders for path in Path(folder).glob("model_*.y*ml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, Mapping) and isinstance(content.get("model_spec"), Mapping):
            found[path] = dict(content["model_spec"])
    return found


def memory_of(facts: Iterable[Mapping[str, Any]], assumed_gib: float) -> list[float | None]:
    """Return MemTotal in GiB of each node; None for one that did not answer.

    :param facts: results of gb10.cluster.node_facts.
    :param assumed_gib: taken for every node when above 0.
    """
    totals: list[float | None] = []
    for each in facts:
        total = ((each.get("node") or {}).get("memory_gib") or {}).get("total")
        totals.append(assumed_gib if assumed_gib > 0 else float(total) if total else None)
    return totals


def name_error(name: str, repo: str, target: Path, models: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return why a name cannot be used, or nothing."""
    for path, spec in models.items():
        if ms.group_name(path.stem.removeprefix("model_")) != ms.group_name(name):
            continue
        if path == target and spec.get("repo") == repo:
            continue
        what = f"{spec.get('repo')} has the name {name} already ({path})"
        return f"{what}: -e model={name} serves it. Give this one another name with -e add_model_name=."
    return ""


class ActionModule(ControlNodeAction):
    """Read a repository and work out its model file."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``spec``, ``content``, ``path`` and ``report``, or one sentence."""
        result, args = self.begin(tmp, task_vars, "add_model")
        try:
            self._work_out(args, result)
        except REFUSALS as problem:
            result.update(failed=True, msg=str(problem))
        return result

    @staticmethod
    def _work_out(args: dict[str, Any], result: dict[str, Any]) -> None:
        if not args["node_facts"]:
            raise ProposalError("The inventory has no node in its groups head and workers.")
        if args["name"] and model_name(args["name"]) != args["name"]:
            raise ProposalError(
                f"add_model_name is '{args['name']}', but a name has lower-case letters, digits, dots and dashes, for "
                f"example '{model_name(args['name']) or 'my-model'}'."
            )
        repository = source.read(args["repo"], args["revision"], args["endpoint"], args["token"], args["source_root"])
        name = args["name"] or model_name(repository.repo)
        target = Path(args["directory"]).resolve() / f"{ms.group_name(name)}.yml"
        models = other_models([*args["catalogue"], args["directory"]])
        wrong = name_error(name, repository.repo, target, models)
        if wrong:
            raise ProposalError(wrong)
        ports = [int((spec.get("ports") or {}).get("master") or 0) for path, spec in models.items() if path != target]
        proposal = propose(
            repository,
            Cluster(memory_of(args["node_facts"], args["memory_gib"]), args["images"], ports),
            Wanted(name, args["nodes"], args["image"], args["drafts"], args["task"], args["overrides"]),
            lambda repo, revision: source.read(repo, revision, args["endpoint"], args["token"], args["source_root"]),
        )
        _spec, errors = ms.validate(proposal.spec)
        if errors:
            raise ProposalError(" ".join(errors))
        result.update(
            changed=False,
            spec=proposal.spec,
            vllm_version=proposal.vllm_version,
            path=str(target),
            content=owned.seal(render(proposal.spec, proposal.reasons, proposal.header)),
            report=report.lines(proposal),
        )
