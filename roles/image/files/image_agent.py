# SPDX-License-Identifier: Apache-2.0
"""Moves an engine image between nodes layer by layer; standard library, docker and zstd only.

    python3 image_agent.py export --image TAG --store DIR      layers of TAG into DIR, compressed
    python3 image_agent.py offer --store DIR --listen A:P      DIR for other nodes, until stopped
    python3 image_agent.py pull --image TAG --source URL       what this node lacks, from an offer

The head's store holds each layer once, under its diff id, and one manifest an image.  Layers are read where
Docker keeps them (overlay2 with its tar-split files), so that neither `docker save`'s temporary copy nor
`docker push`'s gzip is paid; any other storage driver goes through `docker save`.  A pulling node fetches the
compressed layers that its Docker Engine asks for, resumably and verified, and hands them over unpacked as a
registry on 127.0.0.1: the engine itself decides what it lacks, whatever its version.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

CHUNK = 1 << 20
SOCKET_TIMEOUT_S = 60
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: The first byte of whoever greets with TLS.
TLS_HANDSHAKE = b"\x16"
#: How often a fetch may break off without a single new byte before it is given up.
IDLE_ATTEMPTS = 5
#: After so long without any question an offer ends: longer than a node unpacks a layer.
OFFER_IDLE_S = 1800.0
DOCKER_SOCKET = "/var/run/docker.sock"

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


class AgentError(Exception):
    """Why the image cannot be moved; the text is for the operator."""


@dataclass(frozen=True)
class Layer:
    """A layer in a store: its diff id, its size as a tar, and its file there."""

    diff_id: str
    bytes: int
    file_bytes: int
    sha256: str

    @property
    def hex(self) -> str:
        return self.diff_id.partition(":")[2]

    @property
    def file(self) -> str:
        return f"{self.hex}.tar.zst"


@dataclass(frozen=True)
class Manifest:
    """An image in a store: its name, its configuration as Docker wrote it, its layers from the base up."""

    tag: str
    config: str
    layers: list[Layer]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def manifest_from_json(text: str) -> Manifest:
    """Return the manifest that a text holds; raise AgentError when it holds none."""
    try:
        data = json.loads(text)
        layers = [Layer(**layer) for layer in data["layers"]]
        manifest = Manifest(str(data["tag"]), str(data["config"]), layers)
        wanted = json.loads(manifest.config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError) as problem:
        raise AgentError(f"The image's manifest cannot be read: {problem!r}. Export the image again.") from problem
    if [layer.diff_id for layer in layers] != wanted:
        raise AgentError(f"The manifest of {manifest.tag} names other layers than its configuration does.")
    return manifest


def tag_file(tag: str) -> str:
    """Return the file name of an image's manifest and record."""
    return f"{tag.replace('/', '_').replace(':', '@')}.json"


def registry_manifest(manifest: Manifest) -> bytes:
    """Return the image as a registry describes it: every layer an uncompressed tar under its diff id."""
    config = manifest.config.encode()
    layers = [
        {"mediaType": LAYER_TYPE, "size": layer.bytes, "digest": layer.diff_id}
        for layer in manifest.layers
    ]  # fmt: skip
    described = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": digest_of(config)},
        "layers": layers,
    }
    return json.dumps(described).encode()


def digest_of(data: bytes) -> str:
    """Return a registry's digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the name of each layer's whole chain, as Docker's layer store keeps it."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains


def range_start(header: str | None, size: int) -> int | None:
    """Return where an open range begins: 0 without one, None when it cannot be satisfied."""
    if not header:
        return 0
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if match is None:
        return 0
    start = int(match.group(1))
    return start if start < size else None


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def docker(*argv: str) -> str:
    """Return what a docker command prints; raise AgentError when it fails."""
    done = subprocess.run(["docker", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AgentError(f"docker {' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


# --- the head: from Docker's storage into the store ---------------------------------------------------------


def file_chunks(path: Path, size: int) -> Iterator[bytes]:
    """Yield the first ``size`` bytes of a file."""
    with path.open("rb") as handle:
        while size > 0:
            chunk = handle.read(min(CHUNK, size))
            if not chunk:
                return  # what is missing shows in the digest
            size -= len(chunk)
            yield chunk


def overlay2_layer(root: Path, chain: str) -> Iterator[bytes]:
    """Yield a layer's tar, byte for byte as it was, from Docker's own files.

    Docker keeps of every layer the unpacked files and, in tar-split.json.gz, all that lay between them in the
    tar: type 2 is such a piece, type 1 stands for the content of one file.
    """
    folder = root / "image" / "overlay2" / "layerdb" / "sha256" / chain.partition(":")[2]
    diff = root / "overlay2" / (folder / "cache-id").read_text(encoding="utf-8").strip() / "diff"
    with gzip.open(folder / "tar-split.json.gz", "rt", encoding="utf-8") as entries:
        for line in entries:
            entry = json.loads(line)
            if entry["type"] == 2:
                yield base64.b64decode(entry["payload"])
            elif entry.get("size"):
                raw = entry.get("name_raw")
                name = os.fsdecode(base64.b64decode(raw)) if raw else entry["name"]
                yield from file_chunks(diff / name.lstrip("/"), entry["size"])


def held_layers(root: Path, diff_ids: Iterable[str]) -> dict[str, str]:
    """Return diff id → chain id of the layers of an image that this node's Docker Engine has, in the same place.

    An engine knows the digest of a layer only when it came from a registry: one that was built or loaded here it
    asks for again.
    """
    layers = root / "image" / "overlay2" / "layerdb" / "sha256"
    wanted = list(diff_ids)
    chains = zip(wanted, chain_ids(wanted), strict=True)
    return {diff_id: chain for diff_id, chain in chains if (layers / chain.partition(":")[2]).is_dir()}


def store_layer(chunks: Iterable[bytes], folder: Path, level: int, stem: str) -> tuple[Layer, Path]:
    """Compress a layer's tar into a temporary file and return what it is; the caller gives it its name."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{stem}.writing"
    raw, packed = hashlib.sha256(), hashlib.sha256()
    raw_bytes = packed_bytes = 0
    argv = ["zstd", f"-{level}", "-T0", "--quiet", "--stdout"]
    with (
        temporary.open("wb") as out,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=CHUNK) as zstd,
    ):
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        packed_stream: BinaryIO = zstd.stdout  # type: ignore[assignment]

        def drain() -> None:
            nonlocal packed_bytes
            while chunk := packed_stream.read(CHUNK):
                packed.update(chunk)
                out.write(chunk)
                packed_bytes += len(chunk)

        drainer = threading.Thread(target=drain)
        drainer.start()
        try:
            for chunk in chunks:
                raw.update(chunk)
                raw_bytes += len(chunk)
                zstd.stdin.write(chunk)
        finally:
            zstd.stdin.close()
            drainer.join()
    if zstd.returncode != 0:
        raise AgentError(f"zstd ended with {zstd.returncode} while it wrote {temporary}: is the disk full?")
    return Layer(f"sha256:{raw.hexdigest()}", raw_bytes, packed_bytes, packed.hexdigest()), temporary


def sound(folder: Path, layer: Layer) -> bool:
    """Return whether a layer's file is there, whole and undamaged; what is damaged is removed."""
    file = folder / layer.file
    try:
        if file.stat().st_size == layer.file_bytes and file_sha256(file) == layer.sha256:
            return True
    except OSError:
        return False
    print(f"{file} was damaged and is made again", flush=True)
    file.unlink()
    return False


def known_layer(folder: Path, diff_id: str) -> Layer | None:
    """Return a layer that the store holds, whole and undamaged."""
    try:
        text = (folder / f"{diff_id.partition(':')[2]}.json").read_text(encoding="utf-8")
        layer = Layer(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None
    return layer if layer.diff_id == diff_id and sound(folder, layer) else None


def describe_layer(folder: Path, layer: Layer) -> None:
    """Write down what a layer's file must be."""
    write_whole(folder / f"{layer.hex}.json", json.dumps(asdict(layer)))


def keep_layer(folder: Path, layer: Layer, temporary: Path) -> None:
    """Give a compressed layer its name, its description last."""
    temporary.replace(folder / layer.file)
    describe_layer(folder, layer)


def export_overlay2(root: Path, diff_ids: list[str], missing: list[str], folder: Path, level: int) -> None:
    """Bring the missing layers of an image into the store from Docker's own files, side by side."""
    chains = dict(zip(diff_ids, chain_ids(diff_ids), strict=True))

    def one(diff_id: str) -> None:
        layer, temporary = store_layer(overlay2_layer(root, chains[diff_id]), folder, level, chains[diff_id][7:])
        if layer.diff_id != diff_id:
            temporary.unlink()
            raise AgentError(
                f"Layer {diff_id[:19]} reads as {layer.diff_id[:19]} from {root}: Docker's files were changed. "
                "Remove the image and build or restore it."
            )
        keep_layer(folder, layer, temporary)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(one, missing))


def archive_members(stream: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """Yield name and content of each regular file of a tar that arrives as a stream."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content  # type: ignore[misc]


class Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head = head
        self.rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.head[: len(buffer)] or self.rest.read(len(buffer))
        self.head = self.head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def tar_chunks(head: bytes, rest: BinaryIO) -> Iterator[bytes]:
    """Yield a layer's tar from a member of `docker save`, which is as it was pulled with the containerd image store."""
    source: Any = io.BufferedReader(Rejoined(head, rest), CHUNK)
    if head.startswith(ZSTD_MAGIC):
        yield from zstd_chunks(source)
        return
    if head.startswith(GZIP_MAGIC):
        source = gzip.GzipFile(fileobj=source)
    while chunk := source.read(CHUNK):
        yield chunk


def zstd_chunks(source: BinaryIO) -> Iterator[bytes]:
    """Yield what a zstd stream unpacks to.

    :raises AgentError: when it is damaged.
    """
    with subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        into = zstd.stdin

        def feed() -> None:
            with suppress(OSError), into:  # one that ended early says so by its exit code
                while chunk := source.read(CHUNK):
                    into.write(chunk)

        feeder = threading.Thread(target=feed)
        feeder.start()
        while chunk := zstd.stdout.read(CHUNK):
            yield chunk
        feeder.join()
    if zstd.returncode != 0:
        raise AgentError(f"A layer of `docker save` does not unpack: zstd ended with {zstd.returncode}.")


def export_archive(stream: BinaryIO, missing: Iterable[str], folder: Path, level: int) -> str:
    """Bring the missing layers into the store from `docker save`; return the image's configuration."""
    wanted = set(missing)
    small: dict[str, bytes] = {}
    for number, (name, content) in enumerate(archive_members(stream)):
        if name.endswith(".json") or name in ("oci-layout", "repositories"):
            small[name] = content.read()
            continue
        if not (name.endswith("/layer.tar") or name.startswith("blobs/sha256/")):
            continue
        start = content.read(CHUNK)
        if start[:1] == b"{":
            small[name] = start + content.read()
            continue
        layer, temporary = store_layer(tar_chunks(start, content), folder, level, f"saved-{number}")
        if layer.diff_id in wanted:
            keep_layer(folder, layer, temporary)
            wanted.remove(layer.diff_id)
        else:
            temporary.unlink()
    if wanted or "manifest.json" not in small:
        raise AgentError(f"`docker save` left out {', '.join(sorted(wanted)) or 'manifest.json'}.")
    return small[json.loads(small["manifest.json"])[0]["Config"]].decode()


def export(tag: str, store: Path, level: int, way: str) -> Manifest:
    """Bring an image into the store, or prove that the store holds it; return its manifest."""
    folder = store / "layers"
    path = store / "images" / tag_file(tag)
    seen = subprocess.run(["docker", "image", "inspect", tag], capture_output=True, text=True, check=False)
    if seen.returncode != 0:
        if not path.is_file():
            raise AgentError(f"{tag} is neither in Docker nor in {store}: build it, or restore it from its backup.")
        manifest = manifest_from_json(path.read_text(encoding="utf-8"))
        layers = {layer.diff_id: layer for layer in manifest.layers}.values()
        lost = [layer.diff_id[:19] for layer in layers if not sound(folder, layer)]
        for layer in layers:
            describe_layer(folder, layer)
        if lost:
            raise AgentError(f"{store} holds {tag} without {', '.join(lost)}: restore it from its backup.")
        return manifest
    inspected = json.loads(seen.stdout)[0]
    diff_ids: list[str] = inspected["RootFS"]["Layers"]
    distinct = list(dict.fromkeys(diff_ids))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = dict(zip(distinct, pool.map(lambda diff_id: known_layer(folder, diff_id), distinct), strict=True))
    missing = [diff_id for diff_id, layer in found.items() if layer is None]
    driver, root = docker("info", "--format", "{{.Driver}}\n{{.DockerRootDir}}").split()
    config_file = Path(root) / "image" / "overlay2" / "imagedb" / "content" / "sha256" / inspected["Id"][7:]
    if way == "auto":
        way = "overlay2" if driver == "overlay2" and config_file.is_file() else "save"
    if way == "overlay2":
        export_overlay2(Path(root), diff_ids, missing, folder, level)
        config = config_file.read_text(encoding="utf-8")
    elif not missing and path.is_file() and known_config(path, diff_ids):
        return manifest_from_json(path.read_text(encoding="utf-8"))
    else:
        with subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as save:
            assert save.stdout is not None
            config = export_archive(save.stdout, missing, folder, level)  # type: ignore[arg-type]
    described = {
        diff_id: Layer(**json.loads((folder / f"{diff_id.partition(':')[2]}.json").read_text(encoding="utf-8")))
        for diff_id in distinct
    }
    manifest = Manifest(tag, config, [described[diff_id] for diff_id in diff_ids])
    write_whole(path, manifest.to_json())
    return manifest


def known_config(path: Path, diff_ids: list[str]) -> bool:
    """Return whether a manifest in the store describes these layers."""
    try:
        manifest = manifest_from_json(path.read_text(encoding="utf-8"))
    except AgentError:
        return False
    return [layer.diff_id for layer in manifest.layers] == diff_ids


# --- the head: the store, for other nodes -------------------------------------------------------------------


class OfferHandler(BaseHTTPRequestHandler):
    """Serves manifests, layers (with ranges) and whole images, read-only, to the nodes that are allowed."""

    protocol_version = "HTTP/1.1"
    #: A node that lost its power closes no connection.
    timeout = 300
    server: OfferServer

    def do_GET(self) -> None:
        if self.server.allow and self.client_address[0] not in self.server.allow:
            self.send_error(403)
            return
        kind, _slash, name = self.path.lstrip("/").partition("/")
        if kind == "tarball" and name in self.server.tags():
            self.tarball(name)
        elif kind in ("images", "layers") and re.fullmatch(r"[A-Za-z0-9_.@-]+", name):
            self.file(self.server.store / kind / name)
        else:
            self.send_error(404)

    def file(self, path: Path) -> None:
        try:
            handle = path.open("rb")
        except OSError:
            self.send_error(404)
            return
        with handle:
            size = os.fstat(handle.fileno()).st_size
            start = range_start(self.headers.get("Range"), size)
            if start is None:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(size - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(handle, start)

    def tarball(self, tag: str) -> None:
        """Stream `docker save`, compressed; a broken one ends without its last chunk, which the receiver sees."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with (
            subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as save,
            subprocess.Popen(["zstd", "-1", "-T0", "-q", "-c"], stdin=save.stdout, stdout=subprocess.PIPE) as zstd,
        ):
            assert save.stdout is not None
            assert zstd.stdout is not None
            save.stdout.close()
            try:
                while chunk := zstd.stdout.read(CHUNK):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            except OSError:
                zstd.stdout.close()  # the receiver is gone: docker save ends too
        if save.returncode == 0 and zstd.returncode == 0:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_words: Any) -> None:
        return


class NobodyAsksError(Exception):
    """Ends an offer that a control node which died has left open."""


class OfferServer(ThreadingHTTPServer):
    """A store on one address, until nobody has asked for it for a while."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], store: Path, allow: Iterable[str], tag: str = "", idle_s: float = OFFER_IDLE_S
    ) -> None:
        super().__init__(address, OfferHandler)
        self.store = store
        self.allow = frozenset(allow)
        self.tag = tag
        self.idle_s = idle_s
        self.asked_at = time.monotonic()
        self.busy = 0
        self.counting = threading.Lock()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection; while it is open, the offer is in use."""
        with self.counting:
            self.busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.counting:
                self.busy -= 1
                self.asked_at = time.monotonic()

    def service_actions(self) -> None:
        """End serve_forever() when nobody asks any more."""
        if not self.busy and time.monotonic() - self.asked_at > self.idle_s:
            raise NobodyAsksError

    def tags(self) -> frozenset[str]:
        """Return the images that may be had as a whole."""
        return frozenset([self.tag] if self.tag else [])


# --- a node: what it lacks, from an offer --------------------------------------------------------------------


@dataclass
class Progress:
    """What a pull has done so far; written to a file that the control node reads."""

    path: Path | None
    phase: str = "start"
    received: int = 0
    kept: int = 0
    total: int = 0
    unpacked: int = 0
    unpack_total: int = 0
    refetched: list[str] = field(default_factory=list)
    error: str = ""
    name: str = ""
    done: bool = False

    def write(self) -> None:
        if self.path is not None:
            data = {key: value for key, value in asdict(self).items() if key != "path"}
            write_whole(self.path, json.dumps(data))


class Fetcher:
    """Brings layers of one manifest into a spool directory: resumed, verified, each one once."""

    def __init__(self, manifest: Manifest, source: str, spool: Path, progress: Progress) -> None:
        self.layers = {layer.diff_id: layer for layer in manifest.layers}
        self.source = urlsplit(source)
        self.spool = spool
        self.progress = progress
        self.locks = {diff_id: threading.Lock() for diff_id in self.layers}
        self.count = threading.Lock()
        spool.mkdir(parents=True, exist_ok=True)
        wanted = {name for layer in self.layers.values() for name in (layer.file, f"{layer.file}.partial")}
        for path in spool.iterdir():
            if path.name not in wanted:
                path.unlink()
        self.progress.kept = sum(path.stat().st_size for path in spool.iterdir())

    def get(self, diff_id: str) -> Path:
        """Return the verified file of a layer, after fetching what is missing of it."""
        layer = self.layers[diff_id]
        final = self.spool / layer.file
        with self.locks[diff_id]:
            if final.is_file():
                if file_sha256(final) == layer.sha256:
                    return final
                self._discard(final, layer)
            partial = self.spool / f"{layer.file}.partial"
            for _attempt in range(3):
                if self._fetch(layer, partial) == layer.sha256:
                    partial.replace(final)
                    return final
                self._discard(partial, layer)
            raise AgentError(
                f"Layer {diff_id[:19]} arrived damaged three times from {self.source.netloc}: its copy there is not "
                "what its manifest says. Run playbooks/image.yml again, which verifies it and makes it anew."
            )

    def forget(self, short_id: str) -> None:
        """Remove the file of a layer that the Docker Engine has taken in."""
        for layer in self.layers.values():
            if layer.hex.startswith(short_id):
                (self.spool / layer.file).unlink(missing_ok=True)

    def _discard(self, path: Path, layer: Layer) -> None:
        path.unlink()
        self.progress.refetched.append(layer.diff_id)
        print(f"layer {layer.diff_id[:19]} was damaged and is fetched again", flush=True)

    def _fetch(self, layer: Layer, partial: Path) -> str:
        """Append to a partial file until it has its length; return its sha256."""
        digest = hashlib.sha256()
        with partial.open("ab+") as out:
            out.seek(0)
            while chunk := out.read(CHUNK):
                digest.update(chunk)
            have, idle, problem = out.tell(), 0, ""
            while have < layer.file_bytes:
                before = have
                try:
                    for chunk in self._stream(f"/layers/{layer.file}", have):
                        out.write(chunk)
                        digest.update(chunk)
                        have += len(chunk)
                        with self.count:
                            self.progress.received += len(chunk)
                except (OSError, http.client.HTTPException) as error:
                    problem = f"{type(error).__name__}: {error}"
                idle = 0 if have > before else idle + 1
                if idle >= IDLE_ATTEMPTS:
                    raise AgentError(
                        f"Layer {layer.diff_id[:19]} stands at {have} of {layer.file_bytes} bytes: "
                        f"{self.source.netloc} sends no more ({problem or 'it ends early'}). What arrived is kept."
                    )
                if have < layer.file_bytes and idle:
                    time.sleep(2)
            out.flush()
            os.fsync(out.fileno())
        return digest.hexdigest() if have == layer.file_bytes else ""

    def _stream(self, path: str, start: int) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(
            self.source.hostname or "", self.source.port, timeout=SOCKET_TIMEOUT_S
        )  # fmt: skip
        try:
            connection.request("GET", path, headers={"Range": f"bytes={start}-"} if start else {})
            reply = connection.getresponse()
            if reply.status != (206 if start else 200):
                raise http.client.HTTPException(f"status {reply.status}")
            while chunk := reply.read(CHUNK):
                yield chunk
        finally:
            connection.close()


class RegistryHandler(BaseHTTPRequestHandler):
    """The offered image as a registry of one image, for this node's own Docker Engine."""

    protocol_version = "HTTP/1.1"
    server: RegistryServer

    def handle_one_request(self) -> None:
        """Answer one request, and a TLS greeting in the words that an engine with the containerd image store waits for.

        It tries TLS first, also on 127.0.0.1, and falls back when the first bytes of the answer are HTTP's.
        """
        if self.rfile.peek(1)[:1] == TLS_HANDSHAKE:  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
            return
        super().handle_one_request()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        manifest = self.server.manifest
        if path == "/v2/":
            self.reply(b"{}", "application/json")
        elif "/manifests/" in path:
            self.reply(registry_manifest(manifest), MANIFEST_TYPE)
        elif path.endswith("/blobs/" + digest_of(manifest.config.encode())):
            self.reply(manifest.config.encode(), CONFIG_TYPE)
        elif (diff_id := path.rpartition("/")[2]) in self.server.fetcher.layers and "/blobs/" in path:
            self.layer(self.server.fetcher.layers[diff_id])
        else:
            self.send_error(404)

    def reply(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest_of(data))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def layer(self, layer: Layer) -> None:
        """Send a layer's tar; the engine sees none of it before the whole of it was fetched and verified."""
        start = range_start(self.headers.get("Range"), layer.bytes)
        if start is None:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(layer.bytes - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{layer.bytes - 1}/{layer.bytes}")
        self.end_headers()
        if self.command != "GET":
            return
        self.wfile.flush()
        if layer.diff_id in self.server.held:
            self.own(self.server.held[layer.diff_id], start)
            return
        try:
            path = self.server.fetcher.get(layer.diff_id)
        except AgentError as problem:
            self.server.problems.append(str(problem))
            self.close_connection = True
            return
        with subprocess.Popen(["zstd", "-dcq", str(path)], stdout=subprocess.PIPE) as zstd:
            assert zstd.stdout is not None
            zstd.stdout.read(start)
            try:
                while chunk := zstd.stdout.read(CHUNK):
                    self.wfile.write(chunk)
            except OSError:
                zstd.kill()  # the engine has gone; it asks again
                self.close_connection = True

    def log_message(self, *_words: Any) -> None:
        return

    def own(self, chain: str, start: int) -> None:
        """Send a layer that the engine has, but not under this digest: no other node need send it."""
        try:
            for chunk in overlay2_layer(self.server.root, chain):
                if start < len(chunk):
                    self.wfile.write(chunk[start:])
                start = max(0, start - len(chunk))
        except OSError as problem:
            print(f"layer {chain[:19]} of this node was not sent to its end: {problem}", flush=True)
        self.close_connection = True  # one that came out shorter must not look as if more were to come


class RegistryServer(ThreadingHTTPServer):
    """One image on 127.0.0.1, which every Docker Engine accepts without TLS."""

    daemon_threads = True

    def __init__(self, manifest: Manifest, fetcher: Fetcher, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), RegistryHandler)
        self.root = root
        self.held = held_layers(root, (layer.diff_id for layer in manifest.layers))
        self.manifest = manifest
        self.fetcher = fetcher
        self.problems: list[str] = []


class _DockerConnection(http.client.HTTPConnection):
    """HTTP to the Docker Engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(DOCKER_SOCKET)


def engine_pull(name: str, tag: str) -> Iterator[dict[str, Any]]:
    """Ask the Docker Engine to pull an image; yield what it tells, as it tells it."""
    connection = _DockerConnection("localhost")
    try:
        connection.request("POST", f"/images/create?fromImage={quote(name, safe='')}&tag={quote(tag, safe='')}")
        reply = connection.getresponse()
        if reply.status != 200:
            raise AgentError(f"The Docker Engine refuses to pull: {reply.read().decode(errors='replace').strip()}")
        for line in reply:
            if line.strip():
                yield json.loads(line)
    except OSError as problem:
        raise AgentError(f"The Docker Engine does not answer at {DOCKER_SOCKET}: {problem}") from problem
    finally:
        connection.close()


@dataclass
class EngineEvents:
    """Takes in what a pulling Docker Engine tells, and keeps the sums."""

    manifest: Manifest
    progress: Progress
    taken: Callable[[str], None]
    held: frozenset[str] = frozenset()
    unpacked: dict[str, int] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._sum()

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise AgentError(f"The Docker Engine gave up the pull: {event['error']}")
        status, short = event.get("status"), event.get("id", "")
        if status == "Already exists":
            self.there.add(short)
        elif status == "Extracting":
            self.unpacked[short] = int((event.get("progressDetail") or {}).get("current") or 0)
        elif status == "Pull complete":
            self.unpacked[short] = sum(layer.bytes for layer in self._layers() if layer.hex.startswith(short))
            self.taken(short)
        self._sum()

    def _layers(self) -> list[Layer]:
        return list({layer.diff_id: layer for layer in self.manifest.layers}.values())

    def _sum(self) -> None:
        coming = [layer for layer in self._layers() if layer.hex[:12] not in self.there]
        self.progress.total = sum(layer.file_bytes for layer in coming if layer.diff_id not in self.held)
        self.progress.unpack_total = sum(layer.bytes for layer in coming)
        self.progress.unpacked = sum(self.unpacked.values())


def get_manifest(source: str, tag: str) -> Manifest:
    """Fetch an image's manifest from an offer."""
    where = urlsplit(source)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=SOCKET_TIMEOUT_S)
    try:
        connection.request("GET", f"/images/{tag_file(tag)}")
        reply = connection.getresponse()
        if reply.status != 200:
            raise AgentError(f"{where.netloc} does not offer {tag} (status {reply.status}).")
        return manifest_from_json(reply.read().decode())
    except OSError as problem:
        raise AgentError(f"{where.netloc} does not answer: {problem}. Is the fabric up?") from problem
    finally:
        connection.close()


def pull_layers(tag: str, source: str, spool: Path, progress: Progress) -> str:
    """Pull an image layer by layer; return the name under which the engine holds it now."""
    manifest = get_manifest(source, tag)
    fetcher = Fetcher(manifest, source, spool, progress)
    server = RegistryServer(manifest, fetcher, Path(docker("info", "--format", "{{.DockerRootDir}}").strip()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name, _colon, mark = tag.rpartition(":")
    remote = f"127.0.0.1:{server.server_address[1]}/{name}"
    progress.phase = "layers"
    events = EngineEvents(manifest, progress, fetcher.forget, frozenset(server.held))
    try:
        for event in engine_pull(remote, mark):
            if server.problems:  # the engine would ask again and again
                raise AgentError(f"The pull of {tag} was ended.")
            events.take(event)
    except AgentError as problem:
        raise AgentError(" ".join([*dict.fromkeys(server.problems), str(problem)])) from problem
    finally:
        server.shutdown()
    shutil.rmtree(spool)
    return f"{remote}:{mark}"


def pull_tarball(tag: str, source: str, progress: Progress) -> str:
    """Load a whole image as it arrives; return the name under which the engine holds it now."""
    where = urlsplit(source)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=SOCKET_TIMEOUT_S)
    progress.phase = "tarball"
    try:
        connection.request("GET", f"/tarball/{tag}")
        # `docker save` gathers the whole image before its first byte.
        if connection.sock is not None:
            connection.sock.settimeout(None)
        reply = connection.getresponse()
        if reply.status != 200:
            raise AgentError(f"{where.netloc} does not offer {tag} (status {reply.status}).")
        with (
            subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd,
            subprocess.Popen(
                ["docker", "load", "--quiet"], stdin=zstd.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as load,
        ):
            assert zstd.stdin is not None
            assert zstd.stdout is not None
            assert load.stderr is not None
            zstd.stdout.close()
            broken = ""
            try:
                while chunk := reply.read(CHUNK):
                    zstd.stdin.write(chunk)
                    progress.received += len(chunk)
            except (OSError, http.client.HTTPException) as problem:
                broken = f"{type(problem).__name__} after {progress.received} bytes"
                load.terminate()
            try:
                zstd.stdin.close()
            except OSError:
                broken = broken or "it was not taken to its end"
            told = load.stderr.read().decode(errors="replace").strip()
        if broken or zstd.returncode or load.returncode:
            raise AgentError(
                f"`docker load` of {tag} from {where.netloc} failed: {' '.join(filter(None, [broken, told]))}"
            )
    except OSError as problem:
        raise AgentError(f"{where.netloc} does not answer: {problem}. Is the fabric up?") from problem
    finally:
        connection.close()
    return tag


def pull(tag: str, source: str, transport: str, spool: Path, status: Path | None) -> int:
    """Pull an image and keep a file that tells how far it is; return the exit code."""
    progress = Progress(status)
    over = threading.Event()

    def tell() -> None:
        while not over.wait(1):
            progress.write()

    teller = threading.Thread(target=tell)
    progress.write()
    teller.start()
    name = ""
    try:
        name = (
            pull_layers(tag, source, spool, progress) if transport == "layers" else pull_tarball(tag, source, progress)
        )
    except AgentError as problem:
        progress.error = str(problem)
    except Exception as problem:
        progress.error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        over.set()
        teller.join()
        progress.done = True
        progress.name = name
        progress.write()
    print(progress.error or f"pulled {name}: {progress.received} bytes received", flush=True)
    return 1 if progress.error else 0


def main(argv: list[str] | None = None) -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("export")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--level", type=int, default=1)
    verb.add_argument("--way", choices=["auto", "overlay2", "save"], default="auto")
    verb = verbs.add_parser("offer")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--listen", required=True)
    verb.add_argument("--allow", default="")
    verb.add_argument("--idle-seconds", type=float, default=OFFER_IDLE_S)
    verb = verbs.add_parser("pull")
    verb.add_argument("--image", required=True)
    verb.add_argument("--source", required=True)
    verb.add_argument("--transport", choices=["layers", "tarball"], default="layers")
    verb.add_argument("--spool", type=Path, required=True)
    verb.add_argument("--status", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.verb == "export":
            print(export(args.image, args.store, args.level, args.way).to_json())
        elif args.verb == "offer":
            host, _colon, port = args.listen.rpartition(":")
            allow = [address for address in args.allow.split(",") if address]
            with suppress(NobodyAsksError):
                OfferServer((host, int(port)), args.store, allow, args.image, args.idle_seconds).serve_forever()
        else:
            return pull(args.image, args.source, args.transport, args.spool, args.status)
    except AgentError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
