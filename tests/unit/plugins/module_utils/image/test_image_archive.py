# SPDX-License-Identifier: Apache-2.0
"""OCI archives of images: written from a registry, verified, kept on the control node, and loaded into an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import archive, layout, records, registry
from ansible_collections.gb10.cluster.plugins.modules import image_archive, image_backup
from tests.unit.helper import EndedError, NodeModule, ended

from .conftest import CONFIG, DIFF_IDS, LAYERS, TAG, pack_gzip, pack_zstd, push, sha, tar_of

OTHER = "gb10/other:ba9876543210"
FILE = "gb10_probe@0123456789ab.tar"
TOP = tar_of("another top", b"another")
RECORD = {"identity": "", "versions": {"torch": "2.11.0"}}


def record() -> dict[str, Any]:
    """Return what is recorded of the image: its identity is that of its layers and configuration."""
    blobs = [registry.Blob(diff_id, "", "", 0) for diff_id in DIFF_IDS]
    return {**RECORD, "identity": registry.Image(TAG, CONFIG, blobs).identity}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def image_of(kept: Path) -> registry.Held:
    found = registry.read(kept, TAG)
    assert found is not None
    return found


def add_other(kept: Path) -> registry.Held:
    """Add an image to a registry that shares its first layer with the image there."""
    return push(kept, OTHER, [LAYERS[0], TOP])


@pytest.fixture
def written(kept: Path, tmp_path: Path) -> Path:
    """Return the archive of the image in the registry."""
    path = tmp_path / "kept" / FILE
    path.parent.mkdir()
    archive.write_archive(path, image_of(kept), kept, record(), {})
    return path


# --- the file --------------------------------------------------------------------------------------------------------


def test_an_archive_is_an_oci_layout_and_what_older_engines_load(written: Path) -> None:
    found = members(written)
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(found["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == f"docker.io/{TAG}"
    for name, data in found.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    manifest = json.loads(found["blobs/sha256/" + entry["digest"][7:]])
    blobs = ["blobs/sha256/" + layer["digest"][7:] for layer in manifest["layers"]]
    assert [len(found[blob]) for blob in blobs] == [layer["size"] for layer in manifest["layers"]]
    assert [gzip.decompress(found[blob]) for blob in blobs] == LAYERS
    config = "blobs/sha256/" + manifest["config"]["digest"][7:]
    assert found[config].decode() == CONFIG
    assert json.loads(found["manifest.json"]) == [{"Config": config, "RepoTags": [TAG], "Layers": blobs}]


def test_the_same_image_gives_the_same_bytes(written: Path, kept: Path, tmp_path: Path) -> None:
    archive.write_archive(tmp_path / "again.tar", image_of(kept), kept, record(), {})
    assert (tmp_path / "again.tar").read_bytes() == written.read_bytes()


def test_tar_reads_the_archive_without_a_complaint(written: Path) -> None:
    done = subprocess.run(["tar", "--list", "--file", str(written)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "index.json" in done.stdout.split()


def test_a_verified_archive_says_what_it_holds(written: Path) -> None:
    found, digest = archive.check_archive(written)
    assert digest == hashlib.sha256(written.read_bytes()).hexdigest()
    assert (found.tag, found.config, found.record, dict(found.shared)) == (TAG, CONFIG, record(), {})
    assert [blob.diff_id for blob in found.blobs] == DIFF_IDS
    assert found.identity == record()["identity"]


@pytest.mark.parametrize("pack", [bytes, pack_zstd])
def test_a_layer_that_is_not_gzip_is_compressed(tools: Path, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """As the containerd image store pushes what came by `docker load`, or was pulled as zstd."""
    del tools
    image = push(tmp_path / "other", TAG, LAYERS, pack)
    path = tmp_path / FILE
    archive.write_archive(path, image, tmp_path / "other", {}, {})
    found, _digest = archive.check_archive(path)
    assert {blob.type for blob in found.blobs} == {archive.LAYER_TYPE}
    assert [gzip.decompress(members(path)[archive.member(blob)]) for blob in found.blobs] == LAYERS
    damaged = registry.blob_path(tmp_path / "other", image.blobs[0].digest)
    damaged.write_bytes(pack(TOP))
    with pytest.raises(layout.ImageError, match=f"does not hold layer {DIFF_IDS[0][:19]}"):
        archive.write_archive(path, image, tmp_path / "other", {}, {})


@pytest.mark.parametrize("cut", [600, -600, -1536, -4096])
def test_a_truncated_archive_is_never_taken_for_a_complete_one(written: Path, cut: int) -> None:
    data = written.read_bytes()
    written.write_bytes(data[:cut])
    if cut == -600:  # no more than the end mark is missing, and every blob is there: the digest beside it tells
        found, digest = archive.check_archive(written)
        assert digest != hashlib.sha256(data).hexdigest()
        assert found.tag == TAG
        return
    with pytest.raises(layout.ImageError, match=r"is (no complete|damaged)"):
        archive.check_archive(written)


def test_a_changed_byte_of_a_layer_is_found(written: Path) -> None:
    data = bytearray(written.read_bytes())
    data[530] ^= 1  # within the first layer
    written.write_bytes(data)
    assert archive.read_archive(written).tag == TAG
    with pytest.raises(layout.ImageError, match="was altered"):
        archive.check_archive(written)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes(b"text" * 1000), "is no complete OCI archive"),
        (lambda path: path.unlink(), "is no complete OCI archive"),
        (lambda path: path.write_bytes(tar_of("manifest.json", b"[]")), "it has no index.json"),
        (lambda path: path.write_bytes(tar_of("index.json", b'{"manifests": []}')), "holds 0 images"),
        (lambda path: path.write_bytes(tar_of("index.json", b"{}")), "is no complete OCI archive"),
        (lambda path: path.write_bytes(tar_of("index.json", b"[" * 100_000)), "is no complete OCI archive"),
    ],
)
def test_something_else_is_no_archive(written: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(written)
    with pytest.raises(layout.ImageError, match=sentence):
        archive.read_archive(written)


@pytest.mark.parametrize("what", ["diff_id", "digest", "shared"])
def test_an_archive_whose_names_lead_out_of_a_directory_is_refused(written: Path, what: str) -> None:
    blob = registry.Blob(DIFF_IDS[0], "x", DIFF_IDS[0], 1)
    shared = {DIFF_IDS[0]: "../other.tar"} if what == "shared" else {}
    config = json.dumps({"rootfs": {"diff_ids": ["sha256:../../x" if what == "diff_id" else DIFF_IDS[0]]}})
    if what == "digest":
        blob = registry.Blob(DIFF_IDS[0], "x", "sha256:../x", 1)
    with tarfile.open(written, "w") as opened:
        for name, data in archive.described(TAG, config, [blob], shared, {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    with pytest.raises(layout.ImageError, match="in a form that is not possible"):
        archive.read_archive(written)


# --- into an engine --------------------------------------------------------------------------------------------------


def test_an_archive_is_loaded_as_it_was_written(written: Path, tools: Path) -> None:
    assert archive.load([written], TAG).identity == record()["identity"]
    loaded = members(tools / "loaded")
    own = members(written)
    assert {name: data for name, data in loaded.items() if name.startswith("blobs/")}.items() <= own.items()
    assert loaded["manifest.json"] == own["manifest.json"]


def test_a_load_names_the_image(written: Path, tools: Path) -> None:
    archive.load([written], OTHER)
    assert json.loads(members(tools / "loaded")["manifest.json"])[0]["RepoTags"] == [OTHER]


def test_an_engine_that_refuses_is_quoted(written: Path, tools: Path) -> None:
    (tools / "fail").write_text("disk on fire", encoding="utf-8")
    with pytest.raises(layout.ImageError, match=f"`docker load` of {TAG} failed: docker: disk on fire"):
        archive.load([written], TAG)


@pytest.mark.parametrize("packed", [bytes, pack_gzip, pack_zstd])
def test_layers_that_others_packed_are_read_too(written: Path, tools: Path, packed: Callable[[bytes], bytes]) -> None:
    """As skopeo writes an archive: no manifest.json, no annotations of ours, layers as the registry has them."""
    blobs = [registry.Blob(sha(data), "x", sha(packed(data)), len(packed(data))) for data in LAYERS]
    small = archive.described("x:1", CONFIG, blobs, {}, {})
    del small["manifest.json"]
    with tarfile.open(written, "w") as opened:
        for name, data in [*small.items(), *zip(map(archive.member, blobs), map(packed, LAYERS), strict=True)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    assert [blob.diff_id for blob in archive.load([written], TAG).blobs] == DIFF_IDS
    loaded = members(tools / "loaded")
    (entry,) = json.loads(loaded["manifest.json"])
    # Docker before 23 cannot unpack zstd.
    expected = LAYERS if packed is pack_zstd else [packed(data) for data in LAYERS]
    assert [loaded[name] for name in entry["Layers"]] == expected


def test_a_layer_that_is_not_what_its_digest_says_is_not_loaded(written: Path, tools: Path) -> None:
    data = bytearray(written.read_bytes())
    data[530] ^= 1  # within the first layer
    written.write_bytes(data)
    with pytest.raises(layout.ImageError, match="is not layer"):
        archive.load([written], TAG)
    assert not (tools / "loaded").exists() or b"manifest.json" not in (tools / "loaded").read_bytes()


# --- the modules -----------------------------------------------------------------------------------------------------


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], images: Any = None) -> EndedError:
    """Run a module on a node whose engine has these images (tag → as it is inspected)."""

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        found = (images or {}).get(argv[-1])
        return (0, json.dumps([found]), "") if found else (1, "", "No such image")

    return ended(module, monkeypatch, NodeModule(params, answer))


def node(monkeypatch: pytest.MonkeyPatch, state_dir: Path, state: str, images: Any = None, **more: Any) -> EndedError:
    params = {
        "state": state,
        "tag": TAG,
        "node": "gx10-1",
        "archives": [],
        "shared": {},
        "record": record(),
        "reserve_gib": 0.0,
        "state_dir": str(state_dir),
        **more,
    }
    return run(image_archive, monkeypatch, params, images)


def control(monkeypatch: pytest.MonkeyPatch, directory: Path, state: str, **more: Any) -> EndedError:
    params = {
        "state": state,
        "directory": str(directory),
        "tag": TAG,
        "layers": [],
        "record": record(),
        "share": True,
        "sha256": "",
        "reserve_gib": 0.0,
        **more,
    }
    return run(image_backup, monkeypatch, params)


def layers_of(image: registry.Image) -> list[dict[str, Any]]:
    return [{"diff_id": blob.diff_id, "file_bytes": blob.bytes} for blob in image.blobs]


@pytest.fixture
def state_dir(kept: Path) -> Path:
    """Return a state directory whose registry is the one with the image."""
    return kept.parent


def back_up(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, directory: Path, manifest: registry.Image, **more: Any
) -> EndedError:
    """Back up an image as the role does; return what was found before."""
    tag = manifest.tag
    found = control(monkeypatch, directory, "missing", tag=tag, layers=layers_of(manifest), **more)
    if not found.failed and not found.result["complete"]:
        made = node(
            monkeypatch,
            state_dir,
            "written",
            tag=tag,
            shared=found.result["shared"],
            record=more.get("record", record()),
        )
        shutil.copy(made.result["path"], directory / "incoming" / found.result["file"])
        node(monkeypatch, state_dir, "absent")
        arrived = control(monkeypatch, directory, "present", tag=tag, sha256=made.result["sha256"])
        assert (arrived.failed, arrived.result.get("changed")) == (False, True)
    return found


def test_a_backup_is_made_once_and_gives_the_image_back(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, manifest = tmp_path / "archives", image_of(state_dir / "image-registry")
    assert back_up(monkeypatch, state_dir, directory, manifest).result["complete"] is False
    assert back_up(monkeypatch, state_dir, directory, manifest).result["complete"] is True
    assert not (state_dir / "image-archives").exists()
    assert list((directory / "incoming").iterdir()) == []
    said = subprocess.run(["sha256sum", "--check", f"{FILE}.sha256"], cwd=directory, capture_output=True, check=False)
    assert said.returncode == 0
    found = control(monkeypatch, directory, "verified").result
    assert found["record"] == record()
    assert [kept["file"] for kept in found["archives"]] == [FILE]
    assert sorted(found["archives"][0]["diff_ids"]) == sorted(DIFF_IDS)

    assert [layer["diff_id"] for layer in found["layers"]] == DIFF_IDS
    assert all(layer["bytes"] > layer["file_bytes"] for layer in found["layers"])

    new = tmp_path / "new"
    (new / "image-archives").mkdir(parents=True)
    shutil.copy(directory / FILE, new / "image-archives")
    inspected = {"Architecture": "arm64", "RootFS": {"Layers": DIFF_IDS}, "Config": None}
    loaded = node(monkeypatch, new, "loaded", {TAG: inspected}, archives=found["archives"], record=found["record"])
    assert (loaded.failed, loaded.result["changed"]) == (False, True)
    assert records.read(str(new), TAG)["identity"] == record()["identity"]
    records.remove(str(new), TAG)
    other = {**inspected, "Architecture": "amd64"}
    refused = node(monkeypatch, new, "loaded", {TAG: other}, archives=found["archives"], record=found["record"])
    assert "It was removed; run the playbook again." in str(refused)
    assert records.read(str(new), TAG) == {}


def test_a_layer_that_another_archive_holds_is_referred_to(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, images = tmp_path / "archives", state_dir / "image-registry"
    other = add_other(images)
    back_up(monkeypatch, state_dir, directory, image_of(images))
    found = back_up(monkeypatch, state_dir, directory, other, record={})
    assert found.result["shared"][DIFF_IDS[0]]["archive"] == FILE
    thin = directory / archive.archive_file(OTHER)
    first, second = archive.read_archive(directory / FILE), archive.read_archive(thin)
    assert second.blobs[0] == first.blobs[0]
    assert archive.member(second.blobs[0]) not in members(thin)
    assert archive.member(second.blobs[1]) in members(thin)

    kept = control(monkeypatch, directory, "verified", tag=OTHER).result["archives"]
    assert [(each["file"], len(each["diff_ids"])) for each in kept] == [(thin.name, 1), (FILE, 1)]
    assert archive.load([thin, directory / FILE], OTHER).identity == other.identity
    with pytest.raises(layout.ImageError, match="which no archive that was given holds"):
        archive.load([thin], OTHER)

    # Complete on request: one file to carry away.
    assert back_up(monkeypatch, state_dir, directory, other, record={}, share=False).result["complete"] is False
    assert archive.read_archive(thin).shared == {}
    # Without the other archive, what refers to it is not verified.
    back_up(monkeypatch, state_dir, directory, other, record={})
    shutil.move(thin, tmp_path / "aside.tar")
    back_up(monkeypatch, state_dir, directory, other, record={})
    (directory / FILE).unlink()
    assert "Nothing was sent to any node" in str(control(monkeypatch, directory, "verified", tag=OTHER))


@pytest.mark.parametrize("how", ["layer", "digest", "cut"])
def test_a_damaged_archive_is_refused_and_written_again(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    directory, manifest = tmp_path / "archives", image_of(state_dir / "image-registry")
    back_up(monkeypatch, state_dir, directory, manifest)
    path = directory / FILE
    data = bytearray(path.read_bytes())
    if how == "layer":
        data[530] ^= 1  # within the first layer
    if how != "digest":
        path.write_bytes(data[: -1 if how == "cut" else None])
    else:
        path.with_name(f"{FILE}.sha256").write_text(f"{'0' * 64}  {FILE}\n", encoding="utf-8")
    refused = control(monkeypatch, directory, "verified")
    assert f"The archive of {TAG} cannot be used: {path}" in str(refused)
    assert "Nothing was sent to any node. Run playbooks/backup_image.yml" in str(refused)
    assert back_up(monkeypatch, state_dir, directory, manifest).result["complete"] is False
    assert not control(monkeypatch, directory, "verified").failed


def test_an_archive_that_did_not_arrive_intact_gets_no_name(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, manifest = tmp_path / "archives", image_of(state_dir / "image-registry")
    control(monkeypatch, directory, "missing", layers=layers_of(manifest))
    made = node(monkeypatch, state_dir, "written")
    arrived = directory / "incoming" / FILE
    for data, digest in (
        (Path(made.result["path"]).read_bytes()[:-5000], made.result["sha256"]),
        (Path(made.result["path"]).read_bytes(), "0" * 64),
    ):
        arrived.write_bytes(data)
        assert "did not arrive intact" in str(control(monkeypatch, directory, "present", sha256=digest))
        assert not arrived.exists()
        assert not (directory / FILE).exists()


def test_an_archive_that_is_not_there_is_named_with_those_that_are(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "archives"
    said = str(control(monkeypatch, directory, "verified"))
    assert f"There is no archive of {TAG} in {directory} on the control node; it holds no image." in said
    back_up(monkeypatch, state_dir, directory, image_of(state_dir / "image-registry"))
    assert f"it holds {TAG}." in str(control(monkeypatch, directory, "verified", tag=OTHER))


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, manifest = tmp_path / "archives", image_of(state_dir / "image-registry")
    said = str(control(monkeypatch, directory, "missing", layers=layers_of(manifest), reserve_gib=10.0**7))
    assert said.startswith(f"the control node: {TAG} needs ")
    assert "too few. No byte was sent" in said
    assert str(node(monkeypatch, state_dir, "written", reserve_gib=10.0**7)).startswith(f"gx10-1: {TAG} needs ")
    assert not (state_dir / "image-archives").exists()


def test_what_the_registry_does_not_have_is_not_archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{TAG} is not in" in str(node(monkeypatch, tmp_path, "written"))
