# SPDX-License-Identifier: Apache-2.0
"""What image_offer runs on a node, what it leaves, and what it says when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import certificates, registry
from ansible_collections.gb10.cluster.plugins.modules import image_offer
from tests.unit.helper import EndedError, NodeModule, ended
from tests.unit.plugins.module_utils.image.conftest import DIFF_IDS, LAYERS, TAG, push

INSPECTED = {"Architecture": "arm64", "RootFS": {"Layers": DIFF_IDS}, "Config": None, "Size": 10 * 2**20}
PROGRAM = "/usr/local/lib/gb10/gb10-image-0.pyz"


class Head(NodeModule):
    """A head whose Docker Engine has the image, and whose `docker push` fills the registry's storage."""

    def __init__(self, params: dict[str, Any], tars: list[bytes] | None = None, check: bool = False) -> None:
        super().__init__(params, self.act, check)
        self.tars = LAYERS if tars is None else tars
        self.refusal = ""
        self.config: list[dict[str, Any]] = []
        #: Exit status of `systemctl is-active`: 3 for a unit that ended, 1 where systemd does not answer.
        self.is_active = 0

    def act(self, argv: list[str]) -> tuple[int, str, str] | None:
        if argv[:3] == ["docker", "image", "inspect"]:
            return (0, json.dumps([INSPECTED]), "") if self.tars else (1, "", "No such image")
        if argv[:2] == ["docker", "history"]:
            return 0, "300\n2000000\n", ""
        if argv[:2] == ["docker", "push"]:
            if self.refusal:
                return 1, "", self.refusal
            push(Path(self.params["state_dir"]) / "image-registry", TAG, self.tars)
        if argv[0] == "systemd-run":
            self.config.append(json.loads(Path(argv[argv.index("--config") + 1]).read_text(encoding="utf-8")))
        if argv[0] == "openssl":
            for option in ("-keyout", "-out"):
                if option in argv:
                    Path(argv[argv.index(option) + 1]).write_text(option, encoding="utf-8")
        if argv[:2] == ["systemctl", "is-active"]:
            return self.is_active, "", ""
        return (0, "Address already in use", "") if argv[0] == "journalctl" else None

    def words(self, *start: str) -> list[list[str]]:
        return [call for call in self.calls if call[: len(start)] == list(start)]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the state directory of a head on which everything listens at once."""
    monkeypatch.setattr(certificates, "RUN", tmp_path / "run")
    monkeypatch.setattr(certificates, "ENGINE", tmp_path / "certs.d")
    monkeypatch.setattr(image_offer, "listens", lambda *_where: True)
    monkeypatch.setattr("shutil.chown", lambda *_words, **_more: None)
    return tmp_path


def params(state_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "state": "present",
        "tag": TAG,
        "node": "gx10-1",
        "state_dir": str(state_dir),
        "address": "192.0.2.1",
        "port": 5080,
        "reserve_gib": 0.0,
        "program": PROGRAM,
        **more,
    }


def run(monkeypatch: pytest.MonkeyPatch, fake: Head) -> EndedError:
    return ended(image_offer, monkeypatch, fake)


def held(state_dir: Path) -> registry.Held:
    found = registry.read(state_dir / "image-registry", TAG)
    assert found is not None
    return found


def test_an_image_is_pushed_on_the_loopback_and_offered_read_only(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Head(params(head))
    result = run(monkeypatch, fake).result
    image = held(head)
    assert result["source"] == f"192.0.2.1:5080/gb10/probe@{image.digest}"
    assert [layer["diff_id"] for layer in result["layers"]] == DIFF_IDS
    assert [layer["file_bytes"] for layer in result["layers"]] == [blob.bytes for blob in image.blobs]
    first, second = fake.config
    assert first["http"] == {"addr": "127.0.0.1:5080"}
    assert second["http"]["addr"] == "192.0.2.1:5080"
    assert second["http"]["tls"]["clientcas"] == [str(head / "run" / "ca.crt")]
    assert [config["storage"]["maintenance"]["readonly"]["enabled"] for config in fake.config] == [False, True]
    assert fake.words("docker", "push") == [["docker", "push", "--quiet", f"127.0.0.1:5080/{TAG}"]]
    assert fake.words("docker", "rmi") == [["docker", "rmi", f"127.0.0.1:5080/{TAG}"]]
    # Nobody signs another certificate, and the server's key is the registry's alone.
    assert not (head / "run" / "ca.key").exists()
    assert (head / "run" / "server.key").stat().st_mode & 0o777 == 0o640
    assert (head / "run").stat().st_mode & 0o777 == 0o750


def test_an_image_that_the_registry_holds_is_not_pushed_again(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(head / "image-registry", TAG, LAYERS)
    fake = Head(params(head))
    assert not run(monkeypatch, fake).failed
    assert (len(fake.config), fake.words("docker", "push")) == (1, [])


def test_a_damaged_layer_is_pushed_anew_and_named(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = push(head / "image-registry", TAG, LAYERS)
    registry.blob_path(head / "image-registry", image.blobs[0].digest).write_bytes(b"damaged")
    fake = Head(params(head, state="stored"))
    assert not run(monkeypatch, fake).failed
    assert fake.warnings == [f"{image.blobs[0].digest[:19]} was damaged in the registry of gx10-1; it is pushed anew."]
    assert held(head) == image
    # Stored alone: nothing is open.
    assert [config["http"] for config in fake.config] == [{"addr": "127.0.0.1:5080"}]
    assert fake.calls[-2][:2] == ["systemctl", "stop"]


def test_another_image_under_the_same_name_is_pushed_over(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(head / "image-registry", TAG, LAYERS[:1])
    fake = Head(params(head, state="stored"))
    assert not run(monkeypatch, fake).failed
    assert [blob.diff_id for blob in held(head).blobs] == DIFF_IDS


def test_what_does_not_work_is_said(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not in the Docker Engine of gx10-1" in str(run(monkeypatch, Head(params(head), [])))
    fake = Head(params(head))
    fake.missing = {"docker-registry"}
    assert str(run(monkeypatch, fake)) == "docker-registry is not installed on gx10-1; the image role installs it."
    fake = Head(params(head))
    fake.refusal = "disk full"
    assert str(run(monkeypatch, fake)) == f"{TAG} cannot be offered: docker push: disk full"
    assert fake.words("docker", "rmi") == [["docker", "rmi", f"127.0.0.1:5080/{TAG}"]]
    assert "does not hold" in str(run(monkeypatch, Head(params(head), LAYERS[:1])))
    assert str(run(monkeypatch, Head(params(head, reserve_gib=1e7)))).startswith(f"gx10-1: {TAG} needs 10.0 MiB below")


@pytest.mark.parametrize("is_active", [0, 1])
def test_an_offer_that_starts_slowly_is_waited_for_unless_its_unit_has_ended(
    head: Path, monkeypatch: pytest.MonkeyPatch, is_active: int
) -> None:
    looks = iter([*[False] * 500, True, True])
    monkeypatch.setattr(image_offer, "listens", lambda *_where: next(looks))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    fake = Head(params(head))
    fake.is_active = is_active
    assert not run(monkeypatch, fake).failed


@pytest.mark.parametrize("is_active", [3, 4])
def test_an_offer_whose_unit_ended_is_reported_with_its_journal(
    head: Path, monkeypatch: pytest.MonkeyPatch, is_active: int
) -> None:
    monkeypatch.setattr(image_offer, "listens", lambda *_where: False)
    fake = Head(params(head))
    fake.is_active = is_active
    said = str(run(monkeypatch, fake))
    assert said == "The image is not offered at 127.0.0.1:5080; the unit's journal: Address already in use"


def test_nothing_is_left_open(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates.accept("192.0.2.1:5080", dict.fromkeys(certificates.CLIENT, "text"))
    (head / "certs.d" / "owner.example").mkdir()
    (head / "run").mkdir()
    fake = Head(params(head, state="absent", program=None, tag=None))
    assert run(monkeypatch, fake).result["changed"] is False
    assert [path.name for path in (head / "certs.d").iterdir()] == ["owner.example"]
    assert not (head / "run").exists()
    assert fake.calls == [["systemctl", "stop", "gb10-image-offer.service"]]
    (head / "certs.d" / "owner.example").rmdir()
    run(monkeypatch, Head(params(head, state="absent", program=None, tag=None)))
    assert not (head / "certs.d").exists()


def test_check_mode_changes_nothing(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Head(params(head), check=True)
    assert run(monkeypatch, fake).result["layers"] == []
    assert (fake.calls, list(head.iterdir())) == ([], [])


@pytest.mark.parametrize(("history", "sizes"), [([{}, {"empty_layer": True}, {}], "ok"), ([], "four times")])
def test_the_size_of_a_layer_unpacked(
    head: Path, monkeypatch: pytest.MonkeyPatch, history: list[dict[str, bool]], sizes: str
) -> None:
    image = push(head / "image-registry", TAG, LAYERS)
    image = registry.Held(image.tag, json.dumps({"history": history}), image.blobs, image.digest)
    fake: Any = NodeModule({}, lambda _argv: (0, "3000000\n0\n20000\n", ""))
    expected = [20000, 3000000] if sizes == "ok" else [4 * blob.bytes for blob in image.blobs]
    assert image_offer.layer_bytes(fake, TAG, image) == expected
    del monkeypatch
