# SPDX-License-Identifier: Apache-2.0
"""image_agent.py over real sockets, with a docker and a zstd that are scripts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import importlib.util
import io
import json
import os
import socket
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

SCRIPT = Path(__file__).parents[3] / "roles" / "image" / "files" / "image_agent.py"
_spec = importlib.util.spec_from_file_location("image_agent", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
agent: Any = importlib.util.module_from_spec(_spec)
sys.modules["image_agent"] = agent
_spec.loader.exec_module(agent)

TAG = "gb10/probe:0123456789ab"

# Compresses and unpacks like the program of that name, as far as the agent asks it to.
ZSTD = f"""#!{sys.executable}
import sys, zlib
words = [word for word in sys.argv[1:] if not word.startswith("-")]
data = open(words[0], "rb").read() if words else sys.stdin.buffer.read()
magic = {agent.ZSTD_MAGIC!r}
sys.stdout.buffer.write(zlib.decompress(data[4:]) if "-dcq" in sys.argv else magic + zlib.compress(data))
"""
# `save` prints a file, `load` keeps what it was given; either fails when it is told to.
DOCKER = f"""#!{sys.executable}
import os, sys
from pathlib import Path
folder = Path(__file__).parent
if (folder / "fail").exists():
    sys.exit("docker: " + (folder / "fail").read_text())
if sys.argv[1] == "save":
    sys.stdout.buffer.write((folder / "saved").read_bytes())
elif sys.argv[1] == "load":
    (folder / "loaded").write_bytes(sys.stdin.buffer.read())
elif sys.argv[1:3] == ["image", "inspect"]:
    if not (folder / "inspected").exists():
        sys.exit("No such image")
    print((folder / "inspected").read_text())
elif sys.argv[1] == "info":
    print("btrfs\\n/nowhere" if "Driver" in sys.argv[-1] else folder / "root")
"""


def tar_of(name: str, content: bytes) -> bytes:
    """Return a tar with one file, as a layer is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# Two layers, the second too random to be compressed to nothing.
LAYERS = [
    tar_of("base", b"base" * 1000),
    tar_of("top", b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(40000))),
]
DIFF_IDS = [sha(layer) for layer in LAYERS]
CONFIG = json.dumps({"architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": DIFF_IDS}})


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the two scripts before everything else on the path; return their directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("zstd", ZSTD), ("docker", DOCKER)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def store(tmp_path: Path, tools: Path) -> Path:
    """Return a store with the two layers and the image's manifest."""
    del tools
    folder = tmp_path / "store"
    layers = []
    for number, data in enumerate(LAYERS):
        layer, temporary = agent.store_layer([data], folder / "layers", 1, str(number))
        agent.keep_layer(folder / "layers", layer, temporary)
        layers.append(layer)
    agent.write_whole(folder / "images" / agent.tag_file(TAG), agent.Manifest(TAG, CONFIG, layers).to_json())
    return folder


def serve(server: ThreadingHTTPServer) -> Iterator[str]:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def offer(store: Path) -> Iterator[str]:
    """Return the address of an offer of the store."""
    yield from serve(agent.OfferServer(("127.0.0.1", 0), store, ["127.0.0.1"], TAG))


def get(url: str, path: str, headers: dict[str, str] | None = None, verb: str = "GET") -> tuple[int, bytes, Any]:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request(verb, path, headers=headers or {})
    reply = connection.getresponse()
    return reply.status, reply.read(), reply.headers


def manifest_of(store: Path) -> Any:
    return agent.manifest_from_json((store / "images" / agent.tag_file(TAG)).read_text(encoding="utf-8"))


# --- pure ---------------------------------------------------------------------------------------------------


def test_a_manifest_survives_its_text(store: Path) -> None:
    manifest = manifest_of(store)
    assert agent.manifest_from_json(manifest.to_json()) == manifest
    assert [layer.diff_id for layer in manifest.layers] == DIFF_IDS
    assert [layer.bytes for layer in manifest.layers] == [len(layer) for layer in LAYERS]


def test_a_text_that_is_no_manifest_is_named() -> None:
    with pytest.raises(agent.AgentError, match="manifest cannot be read"):
        agent.manifest_from_json('{"tag": "x"}')


def test_a_manifest_with_other_layers_than_its_configuration_is_refused(store: Path) -> None:
    manifest = manifest_of(store)
    text = agent.Manifest(TAG, manifest.config, manifest.layers[::-1]).to_json()
    with pytest.raises(agent.AgentError, match="names other layers than its configuration"):
        agent.manifest_from_json(text)


def test_the_registry_describes_layers_by_their_diff_ids(store: Path) -> None:
    described = json.loads(agent.registry_manifest(manifest_of(store)))
    assert [layer["digest"] for layer in described["layers"]] == DIFF_IDS
    assert described["config"] == {
        "mediaType": agent.CONFIG_TYPE,
        "size": len(CONFIG),
        "digest": sha(CONFIG.encode()),
    }


def test_chain_ids_are_dockers() -> None:
    first, second = agent.chain_ids(["sha256:a", "sha256:b"])
    assert first == "sha256:a"
    assert second == sha(b"sha256:a sha256:b")
    assert agent.chain_ids([]) == []


@pytest.mark.parametrize(
    ("header", "start"),
    [(None, 0), ("", 0), ("bytes=5-", 5), ("bytes=5-9", 5), ("bytes=10-", None), ("bytes=99-", None), ("items=1-", 0)],
)
def test_ranges(header: str | None, start: int | None) -> None:
    assert agent.range_start(header, 10) == start


# --- reading layers -------------------------------------------------------------------------------------------


def overlay2(root: Path, layer: bytes, chain: str, name: str, content: bytes) -> None:
    """Lay out a layer as Docker does: the file unpacked, the rest of its tar in tar-split.json.gz."""
    at = layer.index(content)
    folder = root / "image" / "overlay2" / "layerdb" / "sha256" / chain.partition(":")[2]
    folder.mkdir(parents=True)
    (folder / "cache-id").write_text("cache\n", encoding="utf-8")
    diff = root / "overlay2" / "cache" / "diff"
    diff.mkdir(parents=True)
    (diff / name).write_bytes(content)
    entries: list[dict[str, Any]] = [
        {"type": 2, "payload": base64.b64encode(layer[:at]).decode(), "position": 0},
        {"type": 1, "name_raw": base64.b64encode(f"./{name}".encode()).decode(), "size": len(content), "position": 1},
        {"type": 1, "name": "empty", "size": 0, "position": 2},
        {"type": 2, "payload": base64.b64encode(layer[at + len(content) :]).decode(), "position": 3},
    ]
    with gzip.open(folder / "tar-split.json.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_a_layer_is_read_from_dockers_own_files(tmp_path: Path, tools: Path) -> None:
    del tools
    content = b"base" * 1000
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", content)
    assert b"".join(agent.overlay2_layer(tmp_path / "docker", DIFF_IDS[0])) == LAYERS[0]
    agent.export_overlay2(tmp_path / "docker", [DIFF_IDS[0]], [DIFF_IDS[0]], tmp_path / "layers", 1)
    assert agent.known_layer(tmp_path / "layers", DIFF_IDS[0]).bytes == len(LAYERS[0])


def test_files_that_were_changed_under_docker_are_found(tmp_path: Path, tools: Path) -> None:
    del tools
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", b"base" * 1000)
    (tmp_path / "docker" / "overlay2" / "cache" / "diff" / "base").write_bytes(b"BASE" * 1000)
    with pytest.raises(agent.AgentError, match="Docker's files were changed"):
        agent.export_overlay2(tmp_path / "docker", [DIFF_IDS[0]], [DIFF_IDS[0]], tmp_path / "layers", 1)
    assert list((tmp_path / "layers").iterdir()) == []


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "layer.tar files": bytes,
    "gzip blobs": gzip.compress,
    "zstd blobs": lambda data: bytes(agent.ZSTD_MAGIC) + zlib.compress(data),
}


def saved(layers: list[bytes], way: str) -> bytes:
    """Return what `docker save` gives: with layer.tar files, or, newer, with blobs as they were pulled."""
    newer = "blobs" in way
    names = [f"blobs/sha256/{n}" if newer else f"{n}/layer.tar" for n in range(len(layers))]
    config = "blobs/sha256/config" if newer else "config.json"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in [
            *((name, PACKED[way](data)) for name, data in zip(names, layers, strict=True)),
            (config, CONFIG.encode()),
            ("manifest.json", json.dumps([{"Config": config, "Layers": names}]).encode()),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("way", PACKED)
def test_layers_come_out_of_docker_save(tmp_path: Path, tools: Path, way: str) -> None:
    del tools
    stream = io.BytesIO(saved(LAYERS, way))
    assert agent.export_archive(stream, DIFF_IDS[1:], tmp_path, 1) == CONFIG
    assert agent.known_layer(tmp_path, DIFF_IDS[1]).bytes == len(LAYERS[1])
    assert agent.known_layer(tmp_path, DIFF_IDS[0]) is None  # it was not asked for
    assert not list(tmp_path.glob("*.writing"))


def test_docker_save_without_a_layer_is_named(tmp_path: Path, tools: Path) -> None:
    del tools
    with pytest.raises(agent.AgentError, match="left out " + DIFF_IDS[1]):
        agent.export_archive(io.BytesIO(saved(LAYERS[:1], "layer.tar files")), DIFF_IDS, tmp_path, 1)


def test_a_damaged_blob_of_docker_save_is_named(tools: Path) -> None:
    del tools
    packed = PACKED["zstd blobs"](LAYERS[1])
    with pytest.raises(agent.AgentError, match="does not unpack: zstd ended with 1"):
        list(agent.tar_chunks(packed[:100], io.BytesIO(packed[100 : len(packed) // 2])))


def test_export_through_docker_save(tmp_path: Path, tools: Path) -> None:
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    (tools / "inspected").write_text(json.dumps([{"Id": "sha256:1", "RootFS": {"Layers": DIFF_IDS}}]))
    manifest = agent.export(TAG, tmp_path / "store", 1, "auto")
    assert [layer.diff_id for layer in manifest.layers] == DIFF_IDS
    # What the store holds is not made again: docker save would give nothing now.
    (tools / "saved").write_bytes(b"")
    assert agent.export(TAG, tmp_path / "store", 1, "auto") == manifest
    # A damaged layer is.
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    file = tmp_path / "store" / "layers" / manifest.layers[0].file
    file.write_bytes(bytes(file.stat().st_size))
    assert agent.export(TAG, tmp_path / "store", 1, "auto") == manifest
    assert agent.sound(tmp_path / "store" / "layers", manifest.layers[0])


def test_a_store_offers_what_docker_has_lost(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.main(["export", "--image", TAG, "--store", str(store)]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == CONFIG
    (store / "layers" / manifest_of(store).layers[1].file).unlink()
    assert agent.main(["export", "--image", TAG, "--store", str(store)]) == 1
    assert f"without {DIFF_IDS[1][:19]}: restore it from its backup" in capsys.readouterr().err


def test_an_image_that_is_nowhere_is_named(tmp_path: Path, tools: Path) -> None:
    del tools
    with pytest.raises(agent.AgentError, match="is neither in Docker nor in"):
        agent.export(TAG, tmp_path, 1, "auto")


# --- the offer ------------------------------------------------------------------------------------------------


def test_the_offer_serves_files_and_ranges(offer: str, store: Path) -> None:
    layer = manifest_of(store).layers[1]
    whole = (store / "layers" / layer.file).read_bytes()
    assert get(offer, f"/layers/{layer.file}")[:2] == (200, whole)
    status, data, headers = get(offer, f"/layers/{layer.file}", {"Range": "bytes=1000-"})
    assert (status, data) == (206, whole[1000:])
    assert headers["Content-Range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert get(offer, f"/layers/{layer.file}", {"Range": f"bytes={len(whole)}-"})[0] == 416


@pytest.mark.parametrize(
    "path", ["/", "/layers/", "/layers/../images/x", "/etc/passwd", "/layers/%2e%2e/x", "/tarball/other:1"]
)
def test_the_offer_serves_nothing_else(offer: str, path: str) -> None:
    assert get(offer, path)[0] == 404


def test_an_offer_that_nobody_asks_for_ends_and_one_that_is_read_does_not(store: Path) -> None:
    server = agent.OfferServer(("127.0.0.1", 0), store, ["127.0.0.1"], TAG, idle_s=0.5)
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(agent.NobodyAsksError):
            server.serve_forever(0.02)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    # A connection that stays open is a node that fetches, however slowly.
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET", f"/images/{agent.tag_file(TAG)}")
    assert connection.getresponse().read()
    assert not ended.wait(1.2)
    connection.close()
    assert ended.wait(10)
    server.server_close()


def test_the_offer_serves_the_members_alone(store: Path) -> None:
    for url in serve(agent.OfferServer(("127.0.0.1", 0), store, ["192.0.2.7"], TAG)):
        assert get(url, f"/images/{agent.tag_file(TAG)}")[0] == 403


# --- fetching -------------------------------------------------------------------------------------------------


def fetcher_of(store: Path, url: str, spool: Path) -> Any:
    return agent.Fetcher(manifest_of(store), url, spool, agent.Progress(None))


def test_a_layer_is_fetched_once(offer: str, store: Path, tmp_path: Path) -> None:
    fetcher = fetcher_of(store, offer, tmp_path / "spool")
    layer = manifest_of(store).layers[1]
    path = fetcher.get(layer.diff_id)
    assert path.read_bytes() == (store / "layers" / layer.file).read_bytes()
    fetcher.get(layer.diff_id)
    assert fetcher.progress.received == layer.file_bytes
    fetcher.forget(layer.hex[:12])
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_an_interrupted_run_left_is_not_fetched_again(offer: str, store: Path, tmp_path: Path) -> None:
    layer = manifest_of(store).layers[1]
    whole = (store / "layers" / layer.file).read_bytes()
    spool = tmp_path / "spool"
    spool.mkdir()
    half = len(whole) // 2
    (spool / f"{layer.file}.partial").write_bytes(whole[:half])
    (spool / "of-another-image.tar.zst").write_bytes(b"x")
    fetcher = fetcher_of(store, offer, spool)
    assert fetcher.progress.kept == half
    assert fetcher.get(layer.diff_id).read_bytes() == whole
    assert fetcher.progress.received == len(whole) - half
    assert [path.name for path in spool.iterdir()] == [layer.file]


@pytest.mark.parametrize("name", ["{}", "{}.partial"])
def test_what_lies_damaged_on_the_node_is_fetched_again(offer: str, store: Path, tmp_path: Path, name: str) -> None:
    layer = manifest_of(store).layers[1]
    whole = (store / "layers" / layer.file).read_bytes()
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / name.format(layer.file)).write_bytes(b"\0" * 64 + whole[64:])
    fetcher = fetcher_of(store, offer, spool)
    assert fetcher.get(layer.diff_id).read_bytes() == whole
    assert fetcher.progress.refetched == [layer.diff_id]


def test_a_layer_that_stays_damaged_is_given_up(offer: str, store: Path, tmp_path: Path) -> None:
    layer = manifest_of(store).layers[0]
    path = store / "layers" / layer.file
    path.write_bytes(bytes(layer.file_bytes))
    with pytest.raises(agent.AgentError, match="arrived damaged three times from 127"):
        fetcher_of(store, offer, tmp_path / "spool").get(layer.diff_id)
    assert list((tmp_path / "spool").iterdir()) == []


class Flaky(BaseHTTPRequestHandler):
    """Breaks off after 1000 bytes of whatever is asked for; serves nothing at all once it is told to."""

    protocol_version = "HTTP/1.1"
    data = b""
    dead = False
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        start = agent.range_start(self.headers.get("Range"), len(self.data))
        Flaky.asked.append(str(self.headers.get("Range")))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        self.end_headers()
        if not self.dead:
            self.wfile.write(self.data[start : start + 500000])
        self.close_connection = True

    def log_message(self, *_words: Any) -> None:
        return


def test_a_link_that_breaks_off_is_taken_up_where_it_broke(store: Path, tmp_path: Path) -> None:
    layer = manifest_of(store).layers[1]
    Flaky.data, Flaky.dead, Flaky.asked = (store / "layers" / layer.file).read_bytes(), False, []
    assert len(Flaky.data) > 1000000
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Flaky)):
        fetcher = fetcher_of(store, url, tmp_path / "spool")
        assert fetcher.get(layer.diff_id).read_bytes() == Flaky.data
        assert fetcher.progress.received == len(Flaky.data)
    assert Flaky.asked == ["None", "bytes=500000-", "bytes=1000000-"]


def test_a_link_that_gives_nothing_is_given_up(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.time, "sleep", lambda _seconds: None)
    layer = manifest_of(store).layers[1]
    Flaky.data, Flaky.dead = (store / "layers" / layer.file).read_bytes(), True
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Flaky)):
        with pytest.raises(agent.AgentError, match=r"stands at 0 of \d+ bytes: .* sends no more"):
            fetcher_of(store, url, tmp_path / "spool").get(layer.diff_id)


def test_an_offer_of_another_image_is_named(offer: str) -> None:
    with pytest.raises(agent.AgentError, match=r"does not offer gb10/other:1 \(status 404\)"):
        agent.get_manifest(offer, "gb10/other:1")


def test_an_offer_that_is_closed_is_named() -> None:
    with pytest.raises(agent.AgentError, match=r"does not answer: .* Is the fabric up"):
        agent.get_manifest("http://127.0.0.1:9", TAG)


# --- the node's own registry ------------------------------------------------------------------------------------


def test_the_engine_is_given_unpacked_layers(offer: str, store: Path, tmp_path: Path) -> None:
    fetcher = fetcher_of(store, offer, tmp_path / "spool")
    for url in serve(agent.RegistryServer(manifest_of(store), fetcher, tmp_path / "docker")):
        assert get(url, "/v2/")[0] == 200
        status, data, headers = get(url, "/v2/gb10/probe/manifests/0123456789ab")
        assert (status, headers["Docker-Content-Digest"]) == (200, sha(data))
        assert get(url, "/v2/gb10/probe/manifests/0123456789ab", verb="HEAD")[:2] == (200, b"")
        assert get(url, f"/v2/gb10/probe/blobs/{sha(CONFIG.encode())}")[1] == CONFIG.encode()
        assert [get(url, f"/v2/gb10/probe/blobs/{diff_id}")[1] for diff_id in DIFF_IDS] == LAYERS
        status, data, headers = get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[1]}", {"Range": "bytes=700000-"})
        assert (status, data) == (206, LAYERS[1][700000:])
        assert get(url, "/v2/gb10/probe/blobs/sha256:0")[0] == 404


def test_who_greets_with_tls_is_told_that_this_is_http(offer: str, store: Path, tmp_path: Path) -> None:
    """The containerd image store's client looks for these five bytes before it falls back to plain HTTP."""
    fetcher = fetcher_of(store, offer, tmp_path / "spool")
    for url in serve(agent.RegistryServer(manifest_of(store), fetcher, tmp_path / "docker")):
        where = urlsplit(url)
        for hello in (b"\x16\x03\x01\x02\x00\x01" + bytes(506), b"\x16\x03\x01\n\n"):
            with socket.create_connection((where.hostname, where.port), timeout=10) as client:
                client.sendall(hello)
                assert client.recv(5) == b"HTTP/"
                while client.recv(4096):
                    pass


def test_a_layer_that_the_engine_has_is_not_fetched_for_it(offer: str, store: Path, tmp_path: Path) -> None:
    overlay2(tmp_path / "docker", LAYERS[0], DIFF_IDS[0], "base", b"base" * 1000)
    fetcher = fetcher_of(store, offer, tmp_path / "spool")
    server = agent.RegistryServer(manifest_of(store), fetcher, tmp_path / "docker")
    assert server.held == {DIFF_IDS[0]: DIFF_IDS[0]}
    for url in serve(server):
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[0]}")[1] == LAYERS[0]
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[0]}", {"Range": "bytes=700-"})[1] == LAYERS[0][700:]
        assert fetcher.progress.received == 0
        assert get(url, f"/v2/gb10/probe/blobs/{DIFF_IDS[1]}")[1] == LAYERS[1]
    assert fetcher.progress.received == manifest_of(store).layers[1].file_bytes
    events = agent.EngineEvents(manifest_of(store), agent.Progress(None), lambda _short: None, frozenset(server.held))
    assert events.progress.total == manifest_of(store).layers[1].file_bytes


def test_the_engine_sees_no_byte_of_a_damaged_layer(offer: str, store: Path, tmp_path: Path) -> None:
    layer = manifest_of(store).layers[0]
    (store / "layers" / layer.file).write_bytes(bytes(layer.file_bytes))
    server = agent.RegistryServer(manifest_of(store), fetcher_of(store, offer, tmp_path / "spool"), tmp_path / "docker")
    for url in serve(server):
        with pytest.raises(http.client.IncompleteRead) as cut:
            get(url, f"/v2/gb10/probe/blobs/{layer.diff_id}")
        assert cut.value.partial == b""
    assert "arrived damaged three times" in server.problems[0]


def test_what_the_engine_tells_is_summed(store: Path) -> None:
    manifest = manifest_of(store)
    progress = agent.Progress(None)
    taken: list[str] = []
    events = agent.EngineEvents(manifest, progress, taken.append)
    assert progress.total == sum(layer.file_bytes for layer in manifest.layers)
    base, top = manifest.layers
    events.take({"status": "Already exists", "id": base.hex[:12]})
    assert (progress.total, progress.unpack_total) == (top.file_bytes, top.bytes)
    events.take({"status": "Extracting", "id": top.hex[:12], "progressDetail": {"current": 100, "total": top.bytes}})
    assert progress.unpacked == 100
    events.take({"status": "Pull complete", "id": top.hex[:12], "progressDetail": {}})
    assert (progress.unpacked, taken) == (top.bytes, [top.hex[:12]])
    with pytest.raises(agent.AgentError, match="gave up the pull: no space left"):
        events.take({"error": "no space left on device"})


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "DOCKER_SOCKET", str(tmp_path / "none.sock"))
    with pytest.raises(agent.AgentError, match=r"The Docker Engine does not answer at .*none.sock"):
        list(agent.engine_pull("127.0.0.1:1/gb10/probe", "1"))


def test_a_pull_ends_at_once_when_a_layer_cannot_be_had(
    offer: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = manifest_of(store).layers[0]
    (store / "layers" / layer.file).write_bytes(bytes(layer.file_bytes))

    def engine(name: str, mark: str) -> Iterator[dict[str, Any]]:
        with pytest.raises(http.client.IncompleteRead):
            get("http://" + name.partition("/")[0], f"/v2/gb10/probe/blobs/{layer.diff_id}")
        for second in range(5, 0, -1):
            yield {"status": f"Retrying in {second} seconds", "id": mark}
        pytest.fail("the engine was let go on")

    monkeypatch.setattr(agent, "engine_pull", engine)
    with pytest.raises(agent.AgentError, match="arrived damaged three times"):
        agent.pull_layers(TAG, offer, tmp_path / "spool", agent.Progress(None))


def test_a_pull_leaves_nothing_behind(offer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(name: str, mark: str) -> Iterator[dict[str, Any]]:
        for diff_id, data in zip(DIFF_IDS, LAYERS, strict=True):
            assert get("http://" + name.partition("/")[0], f"/v2/gb10/probe/blobs/{diff_id}")[1] == data
            yield {"status": "Pull complete", "id": diff_id[7:19]}
        assert mark == "0123456789ab"
        assert list((tmp_path / "spool").iterdir()) == []

    monkeypatch.setattr(agent, "engine_pull", engine)
    name = agent.pull_layers(TAG, offer, tmp_path / "spool", agent.Progress(None))
    assert name.startswith("127.0.0.1:")
    assert name.endswith(f"/{TAG}")
    assert not (tmp_path / "spool").exists()


def test_a_failed_pull_says_why_in_its_status(
    offer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agent, "DOCKER_SOCKET", str(tmp_path / "none.sock"))
    status = tmp_path / "status.json"
    words = ["pull", "--image", TAG, "--source", offer, "--spool", str(tmp_path / "spool"), "--status", str(status)]
    assert agent.main(words) == 1
    told = json.loads(status.read_text(encoding="utf-8"))
    assert told["done"] is True
    assert told["name"] == ""
    assert "The Docker Engine does not answer" in told["error"]
    assert "The Docker Engine does not answer" in capsys.readouterr().out


# --- tarball ------------------------------------------------------------------------------------------------------


def test_a_tarball_is_streamed_into_docker_load(offer: str, tools: Path, tmp_path: Path) -> None:
    (tools / "saved").write_bytes(saved(LAYERS, "layer.tar files"))
    status = tmp_path / "status.json"
    words = ["pull", "--image", TAG, "--source", offer, "--transport", "tarball", "--spool", str(tmp_path / "spool")]
    assert agent.main([*words, "--status", str(status)]) == 0
    assert (tools / "loaded").read_bytes() == saved(LAYERS, "layer.tar files")
    told = json.loads(status.read_text(encoding="utf-8"))
    assert (told["name"], told["error"], told["done"]) == (TAG, "", True)
    assert told["received"] > 0
    assert not (tmp_path / "spool").exists()


def test_a_tarball_that_breaks_off_is_not_taken_for_whole(offer: str, tools: Path) -> None:
    (tools / "fail").write_text("disk on fire", encoding="utf-8")
    with pytest.raises(agent.AgentError, match=r"`docker load` of .* failed: IncompleteRead"):
        agent.pull_tarball(TAG, offer, agent.Progress(None))
