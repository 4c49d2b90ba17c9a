# SPDX-License-Identifier: Apache-2.0
"""An image from a store over real sockets to a node and into its engine."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import (
    command,
    engine,
    fetch,
    layout,
    offer,
    progress,
    pull,
    ranges,
    registry,
)
from tests.unit.plugins.module_utils.image.conftest import (
    CONFIG,
    DIFF_IDS,
    LAYERS,
    TAG,
    get,
    manifest_of,
    overlay2,
    saved,
    serve,
    sha,
)


def test_the_offer_serves_files_and_ranges(url: str, kept: Path) -> None:
    layer = manifest_of(kept).layers[1]
    whole = (kept / "layers" / layer.file).read_bytes()
    assert get(url, f"/layers/{layer.file}")[:2] == (200, whole)
    status, data, headers = get(url, f"/layers/{layer.file}", {"Range": "bytes=1000-"})
    assert (status, data) == (206, whole[1000:])
    assert headers["Content-Range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert get(url, f"/layers/{layer.file}", {"Range": f"bytes={len(whole)}-"})[0] == 416


@pytest.mark.parametrize(
    "path", ["/", "/layers/", "/layers/../images/x", "/etc/passwd", "/layers/%2e%2e/x", "/tarball/other:1"]
)
def test_the_offer_serves_nothing_else(url: str, path: str) -> None:
    assert get(url, path)[0] == 404


def test_an_offer_that_nobody_asks_for_ends_and_one_that_is_read_does_not(kept: Path) -> None:
    server = offer.OfferServer(("127.0.0.1", 0), kept, ["127.0.0.1"], TAG, idle_seconds=0.5)
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(offer.UnusedOfferError):
            server.serve_forever(0.02)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    # A connection that stays open is a node that fetches, however slowly.
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET", f"/images/{layout.tag_file(TAG)}")
    assert connection.getresponse().read()
    assert not ended.wait(1.2)
    connection.close()
    assert ended.wait(10)
    server.server_close()


def test_the_offer_serves_the_members_alone(kept: Path) -> None:
    for url in serve(offer.OfferServer(("127.0.0.1", 0), kept, ["192.0.2.7"], TAG)):
        assert get(url, f"/images/{layout.tag_file(TAG)}")[0] == 403


# --- fetching -------------------------------------------------------------------------------------------------


def fetcher_of(kept: Path, url: str, spool: Path) -> Any:
    return fetch.Fetcher(manifest_of(kept), url, spool, progress.Progress(None))


def test_a_layer_is_fetched_once(url: str, kept: Path, tmp_path: Path) -> None:
    fetcher = fetcher_of(kept, url, tmp_path / "spool")
    layer = manifest_of(kept).layers[1]
    path = fetcher.get(layer.diff_id)
    assert path.read_bytes() == (kept / "layers" / layer.file).read_bytes()
    fetcher.get(layer.diff_id)
    assert fetcher.progress.received == layer.file_bytes
    fetcher.forget(layer.hex[:12])
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_an_interrupted_run_left_is_not_fetched_again(url: str, kept: Path, tmp_path: Path) -> None:
    layer = manifest_of(kept).layers[1]
    whole = (kept / "layers" / layer.file).read_bytes()
    spool = tmp_path / "spool"
    spool.mkdir()
    half = len(whole) // 2
    (spool / f"{layer.file}.partial").write_bytes(whole[:half])
    (spool / "of-another-image.tar.zst").write_bytes(b"x")
    fetcher = fetcher_of(kept, url, spool)
    assert fetcher.progress.kept == half
    assert fetcher.get(layer.diff_id).read_bytes() == whole
    assert fetcher.progress.received == len(whole) - half
    assert [path.name for path in spool.iterdir()] == [layer.file]


@pytest.mark.parametrize("name", ["{}", "{}.partial"])
def test_what_lies_damaged_on_the_node_is_fetched_again(url: str, kept: Path, tmp_path: Path, name: str) -> None:
    layer = manifest_of(kept).layers[1]
    whole = (kept / "layers" / layer.file).read_bytes()
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / name.format(layer.file)).write_bytes(b"\0" * 64 + whole[64:])
    fetcher = fetcher_of(kept, url, spool)
    assert fetcher.get(layer.diff_id).read_bytes() == whole
    assert fetcher.progress.refetched == [layer.diff_id]


def test_a_layer_that_stays_damaged_is_given_up(url: str, kept: Path, tmp_path: Path) -> None:
    layer = manifest_of(kept).layers[0]
    path = kept / "layers" / layer.file
    path.write_bytes(bytes(layer.file_bytes))
    with pytest.raises(layout.ImageError, match="arrived damaged three times from 127"):
        fetcher_of(kept, url, tmp_path / "spool").get(layer.diff_id)
    assert list((tmp_path / "spool").iterdir()) == []


class Flaky(BaseHTTPRequestHandler):
    """Breaks off after 1000 bytes of whatever is asked for; serves nothing at all once it is told to."""

    protocol_version = "HTTP/1.1"
    data = b""
    dead = False
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        start = ranges.range_start(self.headers.get("Range"), len(self.data)) or 0
        Flaky.asked.append(str(self.headers.get("Range")))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        self.end_headers()
        if not self.dead:
            self.wfile.write(self.data[start : start + 500000])
        self.close_connection = True

    def log_message(self, *_words: Any) -> None:
        return


def test_a_link_that_breaks_off_is_taken_up_where_it_broke(kept: Path, tmp_path: Path) -> None:
    layer = manifest_of(kept).layers[1]
    Flaky.data, Flaky.dead, Flaky.asked = (kept / "layers" / layer.file).read_bytes(), False, []
    assert len(Flaky.data) > 1000000
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Flaky)):
        fetcher = fetcher_of(kept, url, tmp_path / "spool")
        assert fetcher.get(layer.diff_id).read_bytes() == Flaky.data
        assert fetcher.progress.received == len(Flaky.data)
    assert Flaky.asked == ["None", "bytes=500000-", "bytes=1000000-"]


def test_a_link_that_gives_nothing_is_given_up(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    layer = manifest_of(kept).layers[1]
    Flaky.data, Flaky.dead = (kept / "layers" / layer.file).read_bytes(), True
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Flaky)):
        with pytest.raises(layout.ImageError, match=r"is stuck at 0 of \d+ bytes: .* sends no more"):
            fetcher_of(kept, url, tmp_path / "spool").get(layer.diff_id)


def test_an_offer_of_another_image_is_named(url: str) -> None:
    with pytest.raises(layout.ImageError, match=r"does not offer gb10/other:1 \(status 404\)"):
        fetch.get_manifest(url, "gb10/other:1")


def test_an_offer_that_is_closed_is_named() -> None:
    with pytest.raises(layout.ImageError, match=r"does not answer: .* Is the fabric up"):
        fetch.get_manifest("http://127.0.0.1:9", TAG)


# --- the node's own registry ------------------------------------------------------------------------------------


def test_the_engine_is_given_unpacked_layers(url: str, kept: Path, tmp_path: Path) -> None:
    fetcher = fetcher_of(kept, url, tmp_path / "spool")
    for url in serve(registry.RegistryServer(manifest_of(kept), fetcher, tmp_path / "docker")):
        assert get(url, "/v2/")[0] == 200
        status, data, headers = get(url, "/v2/gb10/probe/manifests/0123456789ab")
        assert (status, headers["Docker-Content-Digest"]) == (200, sha(data))
        assert get(url, "/v2/gb10/probe/manifests/0123456789ab", verb="HEAD")[:2] == (200, b"")
        assert get(url, f"/v2/gb10/probe/blobs/{sha(CONFIG.encode())}")[1] == CONFIG.encode()
        assert [get(url, f"/v2/gb10/probe/blobs/{diff_id}")[1] for diff_id in DIFF_IDS] == LAYERS
        status, data, headers = get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[1]}", {"Range": "bytes=700000-"})
        assert (status, data) == (206, LAYERS[1][700000:])
        assert get(url, "/v2/gb10/probe/blobs/sha256:0")[0] == 404


def test_who_greets_with_tls_is_told_that_this_is_http(url: str, kept: Path, tmp_path: Path) -> None:
    """The containerd image store's client looks for these five bytes before it falls back to plain HTTP."""
    fetcher = fetcher_of(kept, url, tmp_path / "spool")
    for url in serve(registry.RegistryServer(manifest_of(kept), fetcher, tmp_path / "docker")):
        where = urlsplit(url)
        for hello in (b"\x16\x03\x01\x02\x00\x01" + bytes(506), b"\x16\x03\x01\n\n"):
            with socket.create_connection((where.hostname, where.port), timeout=10) as client:
                client.sendall(hello)
                assert client.recv(5) == b"HTTP/"
                while client.recv(4096):
                    pass


def test_a_layer_that_the_engine_has_is_not_fetched_for_it(url: str, kept: Path, tmp_path: Path) -> None:
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", b"base" * 1000)
    fetcher = fetcher_of(kept, url, tmp_path / "spool")
    server = registry.RegistryServer(manifest_of(kept), fetcher, tmp_path / "docker")
    assert server.held == {DIFF_IDS[0]: DIFF_IDS[0]}
    for url in serve(server):
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[0]}")[1] == LAYERS[0]
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[0]}", {"Range": "bytes=700-"})[1] == LAYERS[0][700:]
        assert fetcher.progress.received == 0
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[1]}")[1] == LAYERS[1]
    assert fetcher.progress.received == manifest_of(kept).layers[1].file_bytes
    events = engine.EngineEvents(
        manifest_of(kept), progress.Progress(None), lambda _short: None, frozenset(server.held)
    )
    assert events.progress.total == manifest_of(kept).layers[1].file_bytes


def test_the_engine_sees_no_byte_of_a_damaged_layer(url: str, kept: Path, tmp_path: Path) -> None:
    layer = manifest_of(kept).layers[0]
    (kept / "layers" / layer.file).write_bytes(bytes(layer.file_bytes))
    server = registry.RegistryServer(manifest_of(kept), fetcher_of(kept, url, tmp_path / "spool"), tmp_path / "docker")
    for url in serve(server):
        with pytest.raises(http.client.IncompleteRead) as cut:
            get(url, f"/v2/gb10/probe/blobs/{layer.diff_id}")
        assert cut.value.partial == b""
    assert "arrived damaged three times" in server.problems[0]


def test_what_the_engine_tells_is_summed(kept: Path) -> None:
    manifest = manifest_of(kept)
    state = progress.Progress(None)
    taken: list[str] = []
    events = engine.EngineEvents(manifest, state, taken.append)
    assert state.total == sum(layer.file_bytes for layer in manifest.layers)
    base, top = manifest.layers
    events.take({"status": "Already exists", "id": base.hex[:12]})
    assert (state.total, state.unpack_total) == (top.file_bytes, top.bytes)
    events.take({"status": "Extracting", "id": top.hex[:12], "progressDetail": {"current": 100, "total": top.bytes}})
    assert state.unpacked == 100
    events.take({"status": "Pull complete", "id": top.hex[:12], "progressDetail": {}})
    assert (state.unpacked, taken) == (top.bytes, [top.hex[:12]])
    with pytest.raises(layout.ImageError, match="aborted the pull: no space left"):
        events.take({"error": "no space left on device"})


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DOCKER_SOCKET", str(tmp_path / "none.sock"))
    with pytest.raises(layout.ImageError, match=r"The Docker Engine does not answer at .*none.sock"):
        list(engine.engine_pull("127.0.0.1:1/gb10/probe", "1"))


def test_a_pull_ends_at_once_when_a_layer_cannot_be_had(
    url: str, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = manifest_of(kept).layers[0]
    (kept / "layers" / layer.file).write_bytes(bytes(layer.file_bytes))

    def pull_events(name: str, mark: str) -> Iterator[dict[str, Any]]:
        with pytest.raises(http.client.IncompleteRead):
            get("http://" + name.partition("/")[0], f"/v2/gb10/probe/blobs/{layer.diff_id}")
        for second in range(5, 0, -1):
            yield {"status": f"Retrying in {second} seconds", "id": mark}
        pytest.fail("the engine was let go on")

    monkeypatch.setattr(engine, "engine_pull", pull_events)
    with pytest.raises(layout.ImageError, match="arrived damaged three times"):
        pull.pull_layers(TAG, url, tmp_path / "spool", progress.Progress(None))


def test_a_pull_leaves_nothing_behind(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull_events(name: str, mark: str) -> Iterator[dict[str, Any]]:
        for diff_id, data in zip(DIFF_IDS, LAYERS, strict=True):
            assert get("http://" + name.partition("/")[0], f"/v2/gb10/probe/blobs/{diff_id}")[1] == data
            yield {"status": "Pull complete", "id": diff_id[7:19]}
        assert mark == "0123456789ab"
        assert list((tmp_path / "spool").iterdir()) == []

    monkeypatch.setattr(engine, "engine_pull", pull_events)
    name = pull.pull_layers(TAG, url, tmp_path / "spool", progress.Progress(None))
    assert name.startswith("127.0.0.1:")
    assert name.endswith(f"/{TAG}")
    assert not (tmp_path / "spool").exists()


def test_a_failed_pull_says_why_in_its_status(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "DOCKER_SOCKET", str(tmp_path / "none.sock"))
    status = tmp_path / "status.json"
    words = ["pull", "--image", TAG, "--source", url, "--spool", str(tmp_path / "spool"), "--status", str(status)]
    assert command.main(words) == 1
    told = json.loads(status.read_text(encoding="utf-8"))
    assert told["done"] is True
    assert told["name"] == ""
    assert "The Docker Engine does not answer" in told["error"]
    assert "The Docker Engine does not answer" in capsys.readouterr().out


# --- tarball ------------------------------------------------------------------------------------------------------


def test_a_tarball_is_streamed_into_docker_load(url: str, tools: Path, tmp_path: Path) -> None:
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    status = tmp_path / "status.json"
    words = ["pull", "--image", TAG, "--source", url, "--transport", "tarball", "--spool", str(tmp_path / "spool")]
    assert command.main([*words, "--status", str(status)]) == 0
    assert (tools / "loaded").read_bytes() == saved(LAYERS, "layer.tar files")
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["name"], told["error"], told["done"]) == (TAG, "", True)
    assert told["received"] > 0
    assert not (tmp_path / "spool").exists()


def test_a_tarball_that_breaks_off_is_not_taken_for_whole(url: str, tools: Path) -> None:
    (tools / "fail").write_text("disk on fire", encoding="utf-8")
    with pytest.raises(layout.ImageError, match=r"`docker load` of .* failed: IncompleteRead"):
        fetch.pull_tarball(TAG, url, progress.Progress(None))
