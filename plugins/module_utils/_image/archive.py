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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ansible_collections.gb10.cluster.plugins.module_utils._image import layers as layer_streams
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    CHUNK,
    DIGEST,
    ImageError,
    digest_of,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.registry import Blob, Image, blob_path
from ansible_collections.gb10.cluster.plugins.module_utils._node import files

BLOBS = "blobs/sha256/"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar"
LAYER_TYPE = f"{TAR_TYPE}+gzip"
#: What is known of the verified image, and which blobs are in other archives, both JSON.
RECORD = "gb10.record"
SHARED = "gb10.shared"
#: Where archives arrive, below the directory of those that are complete.
INCOMING = "incoming"
_BLOCK = 512
#: What another machine may have written must not lead a file name out of a directory.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\.tar")


@dataclass(frozen=True)
class Archive(Image):
    """What an archive says of its image.

    ``shared``: digest of a layer that is not in it → file name of the archive that has it; ``record``: what was
    recorded of the verified image, empty for an archive from elsewhere.
    """

    path: Path
    shared: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def own(self) -> list[Blob]:
        """The layers that the file holds, each once."""
        return list({blob.digest: blob for blob in self.blobs if blob.digest not in self.shared}.values())


def member(blob: Blob) -> str:
    return BLOBS + blob.digest.partition(":")[2]


def archive_file(tag: str) -> str:
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


def _add_layer(out: BinaryIO, path: Path, blob: Blob) -> Blob:
    """Append a layer of the registry, as it is when that is gzip; else compressed anew.

    Name and size of one that is compressed are known, and written, after its content.
    """
    start = out.tell()
    out.write(b"\0" * _BLOCK)
    packed = _Digesting(out)
    with path.open("rb") as source:
        head = source.read(CHUNK)
        if head.startswith(layer_streams.GZIP_MAGIC):
            while head:
                packed.write(head)
                head = source.read(CHUNK)
        else:
            raw = hashlib.sha256()
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=packed, mtime=0) as zipped:
                for chunk in layer_streams.tar_chunks(head, source):
                    raw.update(chunk)
                    zipped.write(chunk)
            if f"sha256:{raw.hexdigest()}" != blob.diff_id:
                raise ImageError(f"{path} does not hold layer {blob.diff_id[:19]}; run the playbook again.")
    added = Blob(blob.diff_id, LAYER_TYPE, f"sha256:{packed.digest.hexdigest()}", packed.count)
    out.write(b"\0" * (-packed.count % _BLOCK))
    end = out.tell()
    out.seek(start)
    out.write(_header(member(added), added.bytes))
    out.seek(end)
    return added


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
    older = [{"Config": BLOBS + digest_of(data)[7:], "RepoTags": [tag], "Layers": [member(blob) for blob in layers]}]
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        BLOBS + digest_of(data)[7:]: data,
        BLOBS + digest_of(text)[7:]: text,
        "index.json": json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).encode(),
        "manifest.json": json.dumps(older).encode(),
    }


def write_archive(
    path: Path, image: Image, storage: Path, record: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the archive of an image of the registry, synchronised to disk.

    :param storage: of the registry.
    :param shared: diff id → ``digest``, ``type``, ``bytes`` and ``archive`` of a layer that another archive holds.
    :raises ImageError: a layer of the registry is damaged.
    """
    blobs: dict[str, Blob] = {}
    elsewhere: dict[str, str] = {}
    with path.open("wb") as out:
        for blob in image.distinct:
            if (other := shared.get(blob.diff_id)) is not None:
                blobs[blob.diff_id] = Blob(blob.diff_id, other["type"], other["digest"], int(other["bytes"]))
                elsewhere[other["digest"]] = str(other["archive"])
            else:
                blobs[blob.diff_id] = _add_layer(out, blob_path(storage, blob.digest), blob)
        ordered = [blobs[blob.diff_id] for blob in image.blobs]
        for name, data in described(image.tag, image.config, ordered, elsewhere, record).items():
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
    if not all(DIGEST.fullmatch(str(name)) for name in names) or not all(map(_FILE.fullmatch, shared.values())):
        raise ImageError(f"{path} is damaged: it names a digest or another archive in a form that is not possible.")
    tag = str(notes.get("io.containerd.image.name", "")).removeprefix("docker.io/")
    return Archive(tag, config, blobs, path, shared, record)


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


# --- into an engine --------------------------------------------------------------------------------------------------


def _copy_layer(out: BinaryIO, path: Path, blob: Blob) -> Blob:
    """Append a layer of an archive; zstd is unpacked, which Docker before 23 cannot do."""

    def chunks() -> Iterator[bytes]:
        with tarfile.open(path, "r:") as opened:
            content: Any = opened.extractfile(member(blob))
            head = content.read(CHUNK)
            if head.startswith(layer_streams.ZSTD_MAGIC):
                yield from layer_streams.tar_chunks(head, content)
                return
            while head:
                yield head
                head = content.read(CHUNK)

    digest, size = hashlib.sha256(), 0
    for chunk in chunks():
        digest.update(chunk)
        size += len(chunk)
    name = f"sha256:{digest.hexdigest()}"
    if name not in (blob.digest, blob.diff_id):
        raise ImageError(f"{path} is damaged: {blob.digest[:19]} is not layer {blob.diff_id[:19]}.")
    added = blob if name == blob.digest else Blob(blob.diff_id, TAR_TYPE, name, size)
    out.write(_header(member(added), size))
    for chunk in chunks():
        out.write(chunk)
    out.write(b"\0" * (-size % _BLOCK))
    return added


def compose(out: BinaryIO, paths: Iterable[Path], tag: str) -> Image:
    """Write a complete archive of an image, from its own and those that it shares layers with, for ``docker load``.

    :param paths: the image's own archive first.
    :param tag: the name that the image gets, whatever name the archive gives.
    :raises ImageError: a layer is damaged, or in none of the archives.
    """
    archives = [read_archive(path) for path in paths]
    image = archives[0]
    where = {blob.digest: archive.path for archive in archives for blob in archive.own}
    lost = [blob.digest[:19] for blob in image.distinct if blob.digest not in where]
    if lost:
        raise ImageError(f"{image.path} refers to {', '.join(lost)}, which no archive that was given holds.")
    added: dict[str, Blob] = {}
    for blob in image.distinct:
        try:
            added[blob.diff_id] = _copy_layer(out, where[blob.digest], blob)
        except (EOFError, tarfile.TarError, subprocess.SubprocessError) as problem:
            raise ImageError(f"{where[blob.digest]}: {blob.digest[:19]} cannot be read: {problem}.") from problem
    for name, data in described(tag, image.config, [added[blob.diff_id] for blob in image.blobs], {}, {}).items():
        _add(out, name, data)
    out.write(b"\0" * 2 * _BLOCK)
    return image


def load(paths: Iterable[Path], tag: str) -> Image:
    """Load an image into this node's Docker Engine from its archive, and those that it shares layers with.

    :raises ImageError: a layer is damaged or missing, or the engine refuses the image.
    """
    argv = ["docker", "load", "--quiet"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as engine:
        assert engine.stdin is not None
        assert engine.stderr is not None
        image = None
        try:
            image = compose(engine.stdin, paths, tag)  # type: ignore[arg-type]
            engine.stdin.flush()
        except BrokenPipeError:
            image = None
        except BaseException:
            engine.kill()  # what is not complete must not look as if it were
            raise
        finally:
            with suppress(BrokenPipeError):
                engine.stdin.close()
        said = engine.stderr.read().decode(errors="replace").strip()
    if image is None or engine.returncode != 0:
        raise ImageError(f"`docker load` of {tag} failed: {said}")
    return image
