# SPDX-License-Identifier: Apache-2.0
"""The head's registry: what its storage holds, who may open it, how long it runs, what an engine tells of a pull."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import (
    certificates,
    command,
    engine,
    layout,
    progress,
    registry,
    serve,
)

from .conftest import DIFF_IDS, LAYERS, TAG, push, put, sha, tar_of

OTHER = "gb10/other:ba9876543210"


# --- the storage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [False, True])
def test_an_image_is_read_with_its_layers_and_its_identity(tmp_path: Path, index: bool) -> None:
    found = push(tmp_path, TAG, LAYERS, index=index)
    assert [blob.diff_id for blob in found.blobs] == DIFF_IDS
    assert found.identity == registry.Image("", found.config, found.blobs).identity
    assert registry.blob_path(tmp_path, found.digest).is_file()
    assert registry.read(tmp_path, OTHER) is None


@pytest.mark.parametrize("number", range(4))
def test_an_image_without_one_of_its_parts_is_not_held(tmp_path: Path, number: int) -> None:
    push(tmp_path, TAG, LAYERS)
    sorted(tmp_path.rglob("data"))[number].unlink()
    assert registry.read(tmp_path, TAG) is None


def test_a_damaged_layer_is_removed_and_the_others_are_not(tmp_path: Path) -> None:
    found = push(tmp_path, TAG, LAYERS)
    path = registry.blob_path(tmp_path, found.blobs[1].digest)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert registry.remove_damaged(tmp_path) == [found.blobs[1].digest]
    assert registry.read(tmp_path, TAG) is None
    assert push(tmp_path, TAG, LAYERS) == found
    assert registry.remove_damaged(tmp_path) == []


def test_what_no_image_names_is_removed(tmp_path: Path) -> None:
    top = tar_of("another top", b"another")
    kept = push(tmp_path, TAG, LAYERS, index=True)
    gone = push(tmp_path, OTHER, [LAYERS[0], top])
    put(tmp_path, b"of a push that was interrupted")
    (tmp_path / "docker/registry/v2/repositories/gb10/probe/_uploads/1").mkdir(parents=True)
    freed = registry.prune(tmp_path, {TAG}, True)
    assert registry.read(tmp_path, OTHER) == gone
    assert registry.prune(tmp_path, {TAG}, False) == freed > 0
    assert (registry.read(tmp_path, TAG), registry.read(tmp_path, OTHER)) == (kept, None)
    assert not registry.blob_path(tmp_path, gone.blobs[1].digest).exists()
    assert list(tmp_path.rglob("_uploads")) == []
    assert registry.prune(tmp_path, {TAG}, False) == 0
    assert registry.prune(tmp_path / "none", {TAG}, False) == 0


# --- who may open it -------------------------------------------------------------------------------------------------


def made(folder: Path) -> Path:
    for argv in certificates.prepare(folder, "127.0.0.1"):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_member_is_let_in_by_the_certificate_of_this_distribution_alone(tmp_path: Path) -> None:
    here, earlier = made(tmp_path / "here"), made(tmp_path / "earlier")
    assert {oct(path.stat().st_mode & 0o777) for path in here.glob("*.key")} == {"0o600"}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(here / "server.crt", here / "server.key")
    context.load_verify_locations(here / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED

    def ask(client: ssl.SSLContext) -> bytes:
        def answer() -> None:
            connection, _address = server.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"in")
            except OSError:
                connection.close()

        with socket.create_server(("127.0.0.1", 0)) as server:
            answering = threading.Thread(target=answer)
            answering.start()
            try:
                with (
                    socket.create_connection(server.getsockname(), timeout=300) as connection,
                    client.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
                ):
                    return secure.recv(2)
            finally:
                answering.join()

    member = ssl.create_default_context(cafile=str(here / "ca.crt"))
    with pytest.raises(OSError):  # noqa: PT011  (TLS 1.3 tells it by an alert, or by a connection that ends)
        assert ask(member) == b"in", "let in without a certificate"
    member.load_cert_chain(here / "client.cert", here / "client.key")
    assert ask(member) == b"in"
    other = ssl.create_default_context(cafile=str(here / "ca.crt"))
    other.load_cert_chain(earlier / "client.cert", earlier / "client.key")
    with pytest.raises(OSError):  # noqa: PT011
        assert ask(other) == b"in", "let in with the certificate of an earlier distribution"
    stranger = ssl.create_default_context(cafile=str(earlier / "ca.crt"))
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(stranger)


def test_an_engine_is_told_of_a_registry_and_forgets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "ENGINE", tmp_path)
    (tmp_path / "owner.example").mkdir()
    assert certificates.accepted() == []
    certificates.accept("192.0.2.1:5080", dict.fromkeys(certificates.CLIENT, "text"))
    (folder,) = certificates.accepted()
    assert folder == tmp_path / "192.0.2.1:5080"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("c*")} == {0o600}


# --- how long it runs ------------------------------------------------------------------------------------------------

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100000A:13D8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100000A:0016 0200000A:13D8 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
"""
USED = "   2: 0100000A:13D8 0200000A:C001 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"


def test_who_is_connected() -> None:
    assert not serve.connected(TABLE, 5080)
    assert serve.connected(TABLE + USED, 5080)
    assert not serve.connected(TABLE + USED, 5081)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a docker-registry that runs until its file is there before everything else on the path; return that file."""
    end = tmp_path / "end"
    script = tmp_path / "docker-registry"
    script.write_text(
        f"#!{sys.executable}\nimport sys, time, pathlib\nwhile not pathlib.Path({str(end)!r}).exists():\n"
        "    time.sleep(0.01)\nsys.exit(3)\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return end


def test_a_registry_that_nobody_uses_ends(program: Path, tmp_path: Path) -> None:
    del program
    (tmp_path / "tcp").write_text(TABLE, encoding="utf-8")
    assert serve.serve("config", 5080, 0.0, 0.01, str(tmp_path / "tcp")) == 0


def test_a_registry_that_is_used_does_not_end_by_itself(program: Path, tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(TABLE + USED, encoding="utf-8")
    codes: list[int] = []
    running = threading.Thread(target=lambda: codes.append(serve.serve("config", 5080, 0.0, 0.01, str(table))))
    running.start()
    running.join(0.5)
    assert running.is_alive()
    program.touch()
    running.join()
    assert codes == [3]


# --- what an engine tells --------------------------------------------------------------------------------------------


def test_what_the_engine_tells_is_summed() -> None:
    state = progress.Progress(None)
    events = engine.EngineEvents({"aaa": 100, "bbb": 50}, state)
    events.take({"status": "Pulling fs layer", "id": "aaa"})
    assert (state.total, state.received) == (150, 0)
    events.take({"status": "Already exists", "id": "bbb"})
    assert (state.total, state.unpack_total) == (100, 100)
    events.take({"status": "Downloading", "id": "aaa", "progressDetail": {"current": 40, "total": 100}})
    assert state.received == 40
    events.take({"status": "Download complete", "id": "aaa"})
    events.take({"status": "Extracting", "id": "aaa", "progressDetail": {"current": 30, "total": 100}})
    assert (state.received, state.unpacked) == (100, 30)
    events.take({"status": "Pull complete", "id": "aaa", "progressDetail": {}})
    events.take({"status": "Digest: sha256:x"})
    assert (state.received, state.unpacked) == (100, 100)
    with pytest.raises(layout.ImageError, match="aborted the pull: no space left"):
        events.take({"error": "no space left on device"})


def test_a_pull_reports_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def pull_events(name: str, digest: str) -> list[dict[str, object]]:
        asked.append((name, digest))
        return [{"status": "Download complete", "id": "a" * 12}, {"status": "Pull complete", "id": "a" * 12}]

    monkeypatch.setattr(engine, "engine_pull", pull_events)
    status, source = tmp_path / "status.json", f"192.0.2.1:5080/gb10/probe@{sha(b'x')}"
    words = ["pull", "--source", source, "--layers", f"{'a' * 12}:77,{'b' * 12}:1", "--status", str(status)]
    assert command.main(words) == 0
    assert asked == [("192.0.2.1:5080/gb10/probe", sha(b"x"))]
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["name"], told["done"], told["received"], told["unpacked"], told["total"]) == (source, True, 77, 78, 78)


def test_a_failed_pull_says_why_in_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "DOCKER_SOCKET", str(tmp_path / "none.sock"))
    status = tmp_path / "status.json"
    words = ["pull", "--source", f"192.0.2.1:5080/gb10/probe@{sha(b'x')}", "--status", str(status)]
    assert command.main(words) == 1
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["done"], told["name"]) == (True, "")
    assert "The Docker Engine does not answer" in told["error"]
    assert "The Docker Engine does not answer" in capsys.readouterr().out
