# SPDX-License-Identifier: Apache-2.0
"""A cluster, repositories and what add_model proposes for them, for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import (
    render,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.images import ProposalError
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import (
    Cluster,
    Proposal,
    Wanted,
    propose,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.source import Repository
from tests.unit.repositories import GIB, TEMPLATE

IMAGES: dict[str, Any] = {
    "older": {"base": "x", "vllm_version": "0.22.1", "steps": []},
    "newer": {"pull": "y", "vllm_version": "0.30.0"},
    "own": {"base": "x", "vllm_version": "0.33.0", "steps": [{"name": "vllm", "wheels": ["vllm-*.whl"]}]},
    "fork": {"pull": "f", "vllm_version": "0.1.dev5+gabc", "vllm_upstream": "0.32.0"},
    "broken": {"vllm_version": "0.33.0"},
    "no-version": {"pull": "z"},
}
FOUR = Cluster([119.2] * 4, IMAGES)


def repository(config: Mapping[str, Any], gib: float = 29, template: str = TEMPLATE, **more: Any) -> Repository:
    values: dict[str, Any] = {
        "repo": "org/Some_Model.v2",
        "revision": "0" * 40,
        "where": "http://hub/org/Some_Model.v2",
        "sizes": {"model.safetensors": int(gib * GIB)},
        "weights": ("model.safetensors",),
        "config": config,
        "documents": {"tokenizer_config.json": {"chat_template": template}},
        **more,
    }
    return Repository(**values)


def refused(read: Repository, cluster: Cluster = FOUR, wanted: Wanted | None = None) -> str:
    with pytest.raises(ProposalError) as problem:
        propose(read, cluster, wanted or Wanted())
    assert "\n" not in str(problem.value)
    return str(problem.value)


def text_of(proposal: Proposal) -> str:
    text = render(proposal.spec, proposal.reasons, proposal.header)
    assert yaml.safe_load(text) == {"model_spec": proposal.spec}
    return text
