# SPDX-License-Identifier: Apache-2.0
"""One Kubernetes API for all tests of this directory, furnished as an owner's cluster; without one they skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.kube.server import Running, find_binaries, running
from lab.kube.standin import Behaviour, acting

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


@pytest.fixture(autouse=True)
def nothing_goes_wrong(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "kube" in request.fixturenames:
        found: Kube = request.getfixturevalue("kube")
        for each in (found.behaviour.faults, found.behaviour.job_exits, found.behaviour.logs):
            each.clear()
