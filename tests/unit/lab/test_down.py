# SPDX-License-Identifier: Apache-2.0
"""`lab down` where no Docker Engine answers: on a new machine, and on one whose engine rests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker.errors
import pytest

from lab import cli, daemon
from lab.cluster import Cluster
from lab.errors import LabError
from lab.progress import Progress


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "connect", lambda: (None, "Connection refused"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)


def down(root: Path) -> int:
    return cli.run(cli.parser().parse_args(["down"]), root)


def test_where_no_engine_is_installed_there_is_no_lab(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "which", lambda program: None)
    assert down(tmp_path) == 0
    assert capsys.readouterr().out == "There was no lab 'lab': no Docker Engine is installed here.\n"


def test_an_installed_engine_that_rests_is_started_to_look_for_the_lab(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Path] = []

    def ensure(state: Path, _progress: Any) -> Any:
        started.append(state)
        raise LabError("dockerd stopped at once")

    monkeypatch.setattr(daemon, "which", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(daemon, "ensure", ensure)
    with pytest.raises(LabError, match="dockerd stopped at once"):
        down(tmp_path)
    assert started == [tmp_path]


def test_an_engine_elsewhere_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(daemon, "which", lambda program: None)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(LabError, match=r"DOCKER_HOST=tcp://127\.0\.0\.1:1 does not answer"):
        down(tmp_path)


def test_a_container_that_goes_while_they_are_listed_is_no_error(tmp_path: Path) -> None:
    """The Docker SDK reads each listed container once more; another command may have removed one by then."""

    class Engine:
        containers = networks = volumes = property(lambda self: self)

        def list(self, *, filters: dict[str, Any], ignore_removed: bool = False, **_more: Any) -> list[Any]:
            if "label" in filters and _more.get("all") and not ignore_removed:
                raise docker.errors.NotFound("No such container")
            return []

    cluster = Cluster(Engine(), tmp_path, "lab", Progress())
    assert cluster.containers() == {}
    assert cluster.down(force=True) == []
