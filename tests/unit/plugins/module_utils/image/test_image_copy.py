# SPDX-License-Identifier: Apache-2.0
"""An image of a registry as an OCI archive on the control node, with a program that stands for skopeo."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic

from ansible_collections.gb10.cluster.plugins.module_utils._image import archive, layout, remote, skopeo
from ansible_collections.gb10.cluster.plugins.modules import image_copy
from tests.unit.helper import run_module

from .conftest import LAYERS, TAG, push, sha

NAME = "gb10/base:0123456789ab"
FILE = "gb10_base@0123456789ab.tar"

# Answers as skopeo 1.9.3 does: `inspect --raw` prints the manifest of a digest, `copy` writes an archive.
SKOPEO = f"""#!{sys.executable}
import shutil, sys
from pathlib import Path
folder = Path(__file__).parent
with (folder / "asked").open("a") as log:
    print(*sys.argv[1:], file=log)
if (folder / "fail").exists() and sys.argv[1] in (folder / "fail").read_text():
    sys.exit('level=fatal msg="pinging container registry: connection refused"')
if sys.argv[1] == "inspect":
    path = folder / sys.argv[-1].rpartition("@")[2].replace(":", "_")
    if not path.exists():
        sys.exit('level=fatal msg="manifest unknown"')
    sys.stdout.buffer.write(path.read_bytes())
else:
    shutil.copy(folder / "archive.tar", sys.argv[-1].split(":")[1])
"""


@pytest.fixture
def registry(kept: Path, tools: Path) -> Path:
    """Return the directory of a skopeo that archives the image of the registry as it does: without manifest.json."""
    (tools / "skopeo").write_text(SKOPEO, encoding="utf-8")
    (tools / "skopeo").chmod(0o755)
    whole = tools / "whole.tar"
    archive.write_archive(whole, push(kept, TAG, LAYERS), kept, {}, {})
    with tarfile.open(whole) as source, tarfile.open(tools / "archive.tar", "w") as target:
        for member in source:
            if member.name != "manifest.json":
                target.addfile(member, source.extractfile(member))
    return tools


def put(registry: Path, document: Any) -> str:
    """Give the registry a manifest; return its digest."""
    data = json.dumps(document, indent=3).encode()
    (registry / sha(data).replace(":", "_")).write_bytes(data)
    return sha(data)


def image(registry: Path) -> dict[str, Any]:
    """Return the manifest of the image as the registry has it; the archive's may be another one."""
    blobs = archive.read_archive(registry / "archive.tar").blobs
    return {"schemaVersion": 2, "layers": [{"digest": blob.digest, "size": blob.bytes} for blob in blobs]}


def copy(tmp_path: Path, digest: str, check: bool = False, **more: Any) -> dict[str, Any]:
    arguments = {
        "reference": "registry.example/team/x:1",
        "digest": digest,
        "architecture": "arm64",
        "tag": NAME,
        "directory": str(tmp_path / "kept"),
        **more,
    }
    return run_module(image_copy, arguments, check=check)


def asked(registry: Path) -> list[str]:
    path = registry / "asked"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_an_image_is_copied_once_and_can_be_imported(registry: Path, tmp_path: Path) -> None:
    digest = put(registry, image(registry))
    found = copy(tmp_path, digest)
    assert (found.get("failed"), found["changed"], found["file"]) == (None, True, FILE)
    path = tmp_path / "kept" / FILE
    assert archive.verified_archive(path).blobs == archive.read_archive(registry / "archive.tar").blobs
    assert archive.digest_file(path).is_file()
    with tarfile.open(path) as opened:
        assert json.loads(opened.extractfile("manifest.json").read())[0]["RepoTags"] == [NAME]  # type: ignore[union-attr]
    source = f"docker://registry.example/team/x@{digest}"
    arrived = tmp_path / "kept" / "incoming" / FILE
    assert asked(registry) == [
        f"inspect --raw {source}",
        f"copy --quiet --retry-times 3 {source} oci-archive:{arrived}:{NAME}",
    ]
    assert copy(tmp_path, digest)["changed"] is False
    assert len(asked(registry)) == 2
    path.write_bytes(path.read_bytes()[:-2000])
    assert copy(tmp_path, digest)["changed"] is True


def test_the_image_of_the_nodes_architecture_is_taken(registry: Path, tmp_path: Path) -> None:
    digest = put(registry, image(registry))
    index = {
        "manifests": [
            {"digest": "sha256:" + "a" * 64, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digest, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"digest": "sha256:" + "b" * 64, "platform": {"os": "unknown", "architecture": "unknown"}},
        ]
    }
    assert copy(tmp_path, put(registry, index))["changed"] is True
    assert f"x@{digest} oci-archive:" in asked(registry)[-1]
    with pytest.raises(layout.ImageError, match="has no image for riscv64; it has amd64, arm64"):
        skopeo.instance(index, "riscv64", "x")


def test_another_image_than_the_locked_one_is_refused(registry: Path, tmp_path: Path) -> None:
    digest = "sha256:" + "c" * 64
    (registry / digest.replace(":", "_")).write_text(json.dumps(image(registry)), encoding="utf-8")
    assert f"for {digest[:19]}: it is not the image of the lock" in copy(tmp_path, digest)["msg"]
    other = image(registry)
    other["layers"][0]["digest"] = "sha256:" + "d" * 64
    assert "has other layers than" in copy(tmp_path, put(registry, other))["msg"]
    assert not (tmp_path / "kept" / FILE).exists()


def test_a_damaged_copy_gets_no_name(registry: Path, tmp_path: Path) -> None:
    digest = put(registry, image(registry))
    path = registry / "archive.tar"
    data = bytearray(path.read_bytes())
    data[530] ^= 1
    path.write_bytes(data)
    assert "was altered" in copy(tmp_path, digest)["msg"]
    assert not (tmp_path / "kept" / FILE).exists()


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("inspect", "Check the control node's way to the registry, its proxy (https_proxy), and `skopeo login`."),
        ("copy", "skopeo does not copy docker://registry.example/team/x@sha256:"),
    ],
)
def test_a_registry_that_is_down_is_named(registry: Path, tmp_path: Path, verb: str, sentence: str) -> None:
    (registry / "fail").write_text(verb, encoding="utf-8")
    said = copy(tmp_path, put(registry, image(registry)))["msg"]
    assert sentence in said
    assert "connection refused" in said
    assert not (tmp_path / "kept" / FILE).exists()


def test_without_skopeo_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic.AnsibleModule, "get_bin_path", lambda _self, _name: None)
    said = copy(tmp_path, "sha256:" + "a" * 64)["msg"]
    assert said.startswith("skopeo is not installed on the control node, which is to copy registry.example/team/x:1")
    assert said.endswith("Nothing was copied.")


def test_a_disk_that_is_too_small_is_named_before_a_byte_is_copied(registry: Path, tmp_path: Path) -> None:
    digest = put(registry, image(registry))
    said = copy(tmp_path, digest, reserve_gib=10.0**7)["msg"]
    assert said.startswith("the control node: docker://registry.example/team/x@sha256:")
    assert "too few. No byte was sent" in said
    assert [line.split()[0] for line in asked(registry)] == ["inspect"]


def test_check_mode_copies_nothing(registry: Path, tmp_path: Path) -> None:
    assert copy(tmp_path, put(registry, image(registry)), check=True)["changed"] is True
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("reference", "source", "tls"),
    [
        ("ubuntu:24.04", "docker://docker.io/library/ubuntu@sha256:0", []),
        ("vllm/vllm-openai:v0.30.0", "docker://docker.io/vllm/vllm-openai@sha256:0", []),
        ("127.0.0.1:5099/x:1", "docker://127.0.0.1:5099/x@sha256:0", ["--tls-verify=false"]),
        ("nvcr.io/nvidia/vllm:1", "docker://nvcr.io/nvidia/vllm@sha256:0", []),
    ],
)
def test_plain_http_is_for_this_machine_alone(reference: str, source: str, tls: list[str]) -> None:
    parsed = remote.parse(reference)
    assert parsed is not None
    assert skopeo.source(parsed, "sha256:0") == source
    assert skopeo.tls(parsed, "tls-verify") == tls


@pytest.mark.parametrize("text", [b"<html>", b'{"config": 1}'])
def test_an_answer_that_is_no_manifest_is_named(text: bytes) -> None:
    with pytest.raises(layout.ImageError, match="manifest"):
        skopeo.layers(skopeo.manifest(text, layout.digest_of(text), "x"), "x")
