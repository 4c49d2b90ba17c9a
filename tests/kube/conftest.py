# SPDX-License-Identifier: Apache-2.0
"""One Kubernetes API for all tests of this directory, furnished as an owner's cluster; without one they skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import Cluster
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.state import READY, Progress
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.waiting import Looks, Patience, wait
from lab.kube.server import Running, find_binaries, running
from lab.kube.standin import Behaviour, acting

#: A machine under load may take long for what comes automatically; nothing here waits that long otherwise.
PATIENT = Patience(stall_seconds=120, passing_seconds=120, every_seconds=0.1)
numbers = count()
HOW = "set KUBEBUILDER_ASSETS, or run lab/kube/build ~/.cache/gb10/kube once (about 20 minutes)"


@dataclass(frozen=True)
class Kube:
    """The API and what goes wrong in it."""

    api: Running
    behaviour: Behaviour


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    binaries = find_binaries()
    if binaries is None:
        if os.environ.get("GB10_KUBE") == "require":
            pytest.fail(f"There is no Kubernetes API server: {HOW}.")
        pytest.skip(f"there is no Kubernetes API server: {HOW}")
    directory: Path = tmp_path_factory.mktemp("kube")
    with running(directory, binaries) as api, acting(api.cluster, directory) as behaviour:
        yield Kube(api, behaviour)


def gone(cluster: Cluster, name: str, space: str) -> Progress:
    """Wait until a deployment and its pods have gone."""
    return wait(Looks(cluster, space, name).gone, lambda _line: None, PATIENT)


@pytest.fixture
def space(kube: Kube) -> Iterator[str]:
    """Make a namespace; at the end what serves in it is deleted, and its GPUs are free again."""
    name = f"test-{next(numbers)}"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    kube.api.cluster.apply(made)
    yield name
    graphs = [each["metadata"]["name"] for each in kube.api.cluster.find("DynamoGraphDeployment", name)]
    for graph in graphs:
        kube.api.cluster.delete("DynamoGraphDeployment", graph, name)
    for graph in graphs if kube.api.has_manager else []:
        assert gone(kube.api.cluster, graph, name).state == READY


@pytest.fixture(autouse=True)
def nothing_goes_wrong(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "kube" in request.fixturenames:
        found: Kube = request.getfixturevalue("kube")
        for each in (found.behaviour.faults, found.behaviour.job_exits, found.behaviour.logs):
            each.clear()
