# SPDX-License-Identifier: Apache-2.0
"""OCI archives: one tar an image, which `docker load` takes on both image stores; standard library only.

An archive is an OCI image layout (blobs under their digest, ``index.json``) with the ``manifest.json`` that older
Docker Engines read.  Layers are gzip, which every Docker Engine unpacks.  A layer that another archive of the same
directory holds may be left out: ``index.json`` then names that archive, which has to be loaded first.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image import layers as layer_streams
from ansible_collections.gb10.cluster.plugins.module_utils._image import store
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    ImageError,
    Manifest,
    digest_of,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

BLOBS = "blobs/sha256/"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
#: What is known of the verified image, and which blobs are in other archives, both JSON.
RECORD = "gb10.record"
SHARED = "gb10.shared"
#: Where archives arrive, below the directory of those that are complete.
INCOMING = "incoming"
_BLOCK = 512
#: What another machine may have written must not lead a file name out of a directory.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\.tar")


@dataclass(frozen=True)
class Blob:
    """A layer in an archive: digest of its tar, media type, digest and size in bytes as it is stored."""

    diff_id: str
    type: str
    digest: str
    bytes: int

    @property
    def member(self) -> str:
        return BLOBS + self.digest.partition(":")[2]


@dataclass(frozen=True)
class Archive:
    """What an archive says of its image.

    ``shared``: digest of a layer that is not in it → file name of the archive that has it; ``record``: what was
    recorded of the verified image, empty for an archive from elsewhere.
    """

    path: Path
    tag: str
    config: str
    blobs: list[Blob]
    shared: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The identity that the image will have in a Docker Engine."""
        config = json.loads(self.config)
        return identity(
            {
                "RootFS": {"Layers": [blob.diff_id for blob in self.blobs]},
                "Config": config.get("config"),
                "Architecture": config.get("architecture"),
            }
        )

    @property
    def own(self) -> list[Blob]:
        """The layers that the file holds, each once."""
        return list({blob.digest: blob for blob in self.blobs if blob.digest not in self.shared}.values())


def archive_file(tag: str) -> str:
    """Return the file name of an image's archive."""
    return tag_file(tag).removesuffix(".json") + ".tar"


# --- write -----------------------------------------------------------------------------------------------------------


class _Digesting(io.RawIOBase):
    """Counts and digests what is written through it."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.digest = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        return self.out.write(data)


def _add(out: BinaryIO, name: str, data: bytes) -> None:
    out.write(_header(name, len(data)))
    out.write(data + b"\0" * (-len(data) % _BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _add_layer(out: BinaryIO, path: Path, diff_id: str) -> Blob:
    """Append a layer of a store, compressed with gzip; its name and size are known, and written, after its content."""
    start = out.tell()
    out.write(b"\0" * _BLOCK)
    packed = _Digesting(out)
    raw = hashlib.sha256()
    with (
        path.open("rb") as source,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=packed, mtime=0) as zipped,
    ):
        for chunk in layer_streams.zstd_chunks(source):
            raw.update(chunk)
            zipped.write(chunk)
    if f"sha256:{raw.hexdigest()}" != diff_id:
        raise ImageError(f"{path} does not hold layer {diff_id[:19]}; remove it and export the image again.")
    blob = Blob(diff_id, LAYER_TYPE, f"sha256:{packed.digest.hexdigest()}", packed.count)
    out.write(b"\0" * (-packed.count % _BLOCK))
    end = out.tell()
    out.seek(start)
    out.write(_header(blob.member, blob.bytes))
    out.seek(end)
    return blob


def described(
    tag: str, config: str, blobs: Iterable[Blob], shared: Mapping[str, str], record: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the small members of an archive by name, index.json and manifest.json last.

    :param shared: digest → file name of the archive that holds the layer.
    """
    layers = list(blobs)
    data = config.encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(data), "size": len(data)},
        "layers": [{"mediaType": blob.type, "digest": blob.digest, "size": blob.bytes} for blob in layers],
    }
    text = json.dumps(manifest).encode()
    annotations = {
        # As `docker save` writes them: containerd's name of the image, and its tag alone.
        "io.containerd.image.name": f"docker.io/{tag}",
        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
        **({RECORD: json.dumps(record, sort_keys=True)} if record else {}),
        **({SHARED: json.dumps(dict(shared), sort_keys=True)} if shared else {}),
    }
    entry = {"mediaType": MANIFEST_TYPE, "digest": digest_of(text), "size": len(text), "annotations": annotations}
    older = [{"Config": BLOBS + digest_of(data)[7:], "RepoTags": [tag], "Layers": [blob.member for blob in layers]}]
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        BLOBS + digest_of(data)[7:]: data,
        BLOBS + digest_of(text)[7:]: text,
        "index.json": json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode(),
        "manifest.json": json.dumps(older).encode(),
    }


def write_archive(
    path: Path, manifest: Manifest, folder: Path, record: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the archive of an image in a store, synchronised to disk.

    :param folder: the store's layers.
    :param shared: diff id → ``digest``, ``type``, ``bytes`` and ``archive`` of a layer that another archive holds.
    :raises ImageError: a layer of the store is damaged.
    """
    blobs: dict[str, Blob] = {}
    elsewhere: dict[str, str] = {}
    with path.open("wb") as out:
        for layer in manifest.distinct:
            if (other := shared.get(layer.diff_id)) is not None:
                blobs[layer.diff_id] = Blob(layer.diff_id, other["type"], other["digest"], int(other["bytes"]))
                elsewhere[other["digest"]] = str(other["archive"])
            else:
                blobs[layer.diff_id] = _add_layer(out, folder / layer.file, layer.diff_id)
        ordered = [blobs[layer.diff_id] for layer in manifest.layers]
        for name, data in described(manifest.tag, manifest.config, ordered, elsewhere, record).items():
            _add(out, name, data)
        out.write(b"\0" * 2 * _BLOCK)
        out.flush()
        os.fsync(out.fileno())


# --- read ------------------------------------------------------------------------------------------------------------


def _member(opened: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        content = opened.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise ImageError(
            f"{path} is no complete OCI archive: it has no {name}. Write it again with playbooks/backup_image.yml, "
            "skopeo, or `docker save` of Docker 25 or later."
        )
    return content.read()


def _blob(opened: tarfile.TarFile, described: Mapping[str, Any], path: Path) -> bytes:
    data = _member(opened, BLOBS + str(described["digest"]).partition(":")[2], path)
    if digest_of(data) != described["digest"]:
        raise ImageError(f"{path} is damaged: {described['digest'][:19]} was altered.")
    return data


def read_archive(path: Path) -> Archive:
    """Return what an archive says; layers are not read (`check_archive` does).

    :raises ImageError: it is no complete OCI archive of one image.
    """
    try:
        with tarfile.open(path, "r:") as opened:
            entries = json.loads(_member(opened, "index.json", path))["manifests"]
            if len(entries) != 1:
                raise ImageError(f"{path} holds {len(entries)} images, expected is one.")
            manifest = json.loads(_blob(opened, entries[0], path))
            config = _blob(opened, manifest["config"], path).decode()
        notes = entries[0].get("annotations") or {}
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
        blobs = [
            Blob(diff_id, layer["mediaType"], layer["digest"], int(layer["size"]))
            for diff_id, layer in zip(diff_ids, manifest["layers"], strict=True)
        ]
        shared, record = json.loads(notes.get(SHARED, "{}")), json.loads(notes.get(RECORD, "{}"))
    except (
        OSError,
        EOFError,
        tarfile.TarError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as problem:
        raise ImageError(f"{path} is no complete OCI archive: {problem}.") from problem
    names = [*diff_ids, *(layer.digest for layer in blobs), *shared]
    if not all(_DIGEST.fullmatch(str(name)) for name in names) or not all(map(_FILE.fullmatch, shared.values())):
        raise ImageError(f"{path} is damaged: it names a digest or another archive in a form that is not possible.")
    tag = str(notes.get("io.containerd.image.name", "")).removeprefix("docker.io/")
    return Archive(path, tag, config, blobs, shared, record)


class _Tee(io.RawIOBase):
    """Digests what is read through it."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.source.read(len(buffer))
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)


def check_archive(path: Path) -> tuple[Archive, str]:
    """Read all of an archive; return what it says and the sha256 (hex) of the file.

    :raises ImageError: a blob that it has to hold is missing, or does not have its digest.
    """
    archive = read_archive(path)
    found: set[str] = set()
    try:
        with path.open("rb") as handle:
            stream = _Tee(handle)
            for name, content in layer_streams.archive_members(io.BufferedReader(stream, CHUNK)):
                digest = hashlib.sha256()
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
                if name.startswith(BLOBS) and name != BLOBS + digest.hexdigest():
                    raise ImageError(f"{path} is damaged: {name.removeprefix(BLOBS)[:12]} was altered.")
                found.add(f"sha256:{digest.hexdigest()}")
            while stream.read(CHUNK):
                pass
    except (OSError, EOFError, tarfile.TarError) as problem:
        raise ImageError(f"{path} is damaged: {problem}.") from problem
    lost = [blob.digest[:19] for blob in archive.own if blob.digest not in found]
    if lost:
        raise ImageError(f"{path} is no complete archive: it has no {', '.join(lost)}.")
    return archive, stream.digest.hexdigest()


def digest_file(path: Path) -> Path:
    """Return the file in which the SHA-256 of an archive is kept, as ``sha256sum --check`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def verified_archive(path: Path) -> Archive:
    """Verify an archive, also against the digest beside it.

    :raises ImageError: it is damaged or incomplete.
    """
    archive, found = check_archive(path)
    noted = files.read(digest_file(path))
    if noted is not None and noted[0].decode(errors="replace").split()[:1] != [found]:
        raise ImageError(f"{path} does not have the SHA-256 of {digest_file(path).name}.")
    return archive


def accept(arrived: Path, path: Path, sha256: str) -> None:
    """Give a verified archive its name.

    Between the steps there is an archive without its digest, which is valid; with another's it would not be.
    """
    files.delete(digest_file(path))
    arrived.replace(path)
    files.write(digest_file(path), f"{sha256}  {path.name}\n")


def add_older_manifest(path: Path, tag: str) -> None:
    """Append the manifest.json that older Docker Engines read to an OCI archive that has none."""
    blobs = read_archive(path)
    data = described(tag, blobs.config, blobs.blobs, {}, {})["manifest.json"]
    with tarfile.open(path, "a:") as opened:
        if "manifest.json" not in opened.getnames():
            info = tarfile.TarInfo("manifest.json")
            info.size, info.mode = len(data), 0o644
            opened.addfile(info, io.BytesIO(data))


# --- into a store ----------------------------------------------------------------------------------------------------


def import_archives(paths: Iterable[Path], tag: str, folder: Path, level: int) -> Manifest:
    """Bring an image from its archive, and those that it shares layers with, into a store.

    :param paths: the image's own archive first.
    :param tag: the name that the image gets, whatever name the archive gives.
    :raises ImageError: a layer is damaged, or in none of the archives.
    """
    archives = [read_archive(path) for path in paths]
    image = archives[0]
    wanted = {blob.diff_id: blob for blob in image.blobs}
    known = {diff_id: store.known_layer(folder / "layers", diff_id) for diff_id in wanted}
    for archive in archives:
        with tarfile.open(archive.path, "r:") as opened:
            for blob in archive.own:
                if blob.diff_id not in known or known[blob.diff_id] is not None:
                    continue
                content: Any = opened.extractfile(blob.member)
                try:
                    chunks = layer_streams.tar_chunks(content.read(CHUNK), content)
                    layer, temporary = store.store_layer(chunks, folder / "layers", level, f"archived-{os.getpid()}")
                except (OSError, EOFError, subprocess.SubprocessError) as problem:
                    raise ImageError(f"{archive.path}: {blob.digest[:19]} cannot be read: {problem}.") from problem
                if layer.diff_id != blob.diff_id:
                    temporary.unlink()
                    raise ImageError(f"{archive.path} is damaged: {blob.digest[:19]} is not layer {blob.diff_id[:19]}.")
                store.keep_layer(folder / "layers", layer, temporary)
                known[blob.diff_id] = layer
    layers = [known[blob.diff_id] for blob in image.blobs]
    lost = [blob.diff_id[:19] for blob, layer in zip(image.blobs, layers, strict=True) if layer is None]
    if lost:
        raise ImageError(f"{image.path} refers to {', '.join(lost)}, which no archive that was given holds.")
    manifest = Manifest(tag, image.config, [layer for layer in layers if layer is not None])
    store.write_manifest(folder, manifest)
    return manifest
