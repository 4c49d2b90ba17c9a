# SPDX-License-Identifier: Apache-2.0
"""One lab of four nodes for the whole session; the test files run in the order of their names.

The lab is made anew, so that the first test meets nodes that have nothing but sshd, and removed
at the end. While writing tests:

    pytest tests/e2e --reuse-lab    touch nothing of the lab that runs, before or after
    pytest tests/e2e --keep-lab     make the lab anew, and leave it running at the end
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.demo import prepare_lab
from tests.e2e import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab")
    group.addoption("--reuse-lab", action="store_true", help="run on the lab as it is, and leave it running")
    group.addoption("--keep-lab", action="store_true", help="leave the lab running at the end")


@pytest.fixture(scope="session", autouse=True)
def lab_of_four(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring up the default lab, its wheels and its models."""
    if all(getattr(getattr(item, "module", None), "OWN_LAB", False) for item in request.session.items):
        yield
        return
    reuse = bool(request.config.getoption("--reuse-lab"))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        if reuse:
            # Not `up`: it replaces nodes that another version of the lab made.
            harness.lab("status")
        else:
            harness.lab("down")
            prepare_lab(nodes=len(harness.NODES))
    yield
    if not reuse and not request.config.getoption("--keep-lab"):
        harness.lab("down")
