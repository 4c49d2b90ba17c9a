# SPDX-License-Identifier: Apache-2.0
"""References of images, and the digest of a tag from a registry on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import remote
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError
from ansible_collections.gb10.cluster.plugins.modules import image_digest
from tests.unit.plugins.module_utils.image.conftest import serve

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vllm/vllm-openai:v0.30.0", ("", "vllm/vllm-openai", "v0.30.0", "")),
        ("ubuntu", ("", "ubuntu", "latest", "")),
        ("nvcr.io/nvidia/vllm:26.05.post1-py3", ("nvcr.io", "nvidia/vllm", "26.05.post1-py3", "")),
        (f"nvcr.io/nvidia/vllm:26.05@{DIGEST}", ("nvcr.io", "nvidia/vllm", "26.05", DIGEST)),
        (f"127.0.0.1:5000/a_b/c@{DIGEST}", ("127.0.0.1:5000", "a_b/c", "latest", DIGEST)),
        ("localhost:5000/x:1", ("localhost:5000", "x", "1", "")),
        ("registry:5000/x:1", ("registry:5000", "x", "1", "")),
    ],
)
def test_references(text: str, parts: tuple[str, str, str, str]) -> None:
    assert remote.parse(text) == remote.Reference(*parts)


@pytest.mark.parametrize("text", ["", "Upper/case:1", "x:1@sha256:12", "https://x/y", "a b", "x:"])
def test_what_is_no_reference(text: str) -> None:
    assert remote.parse(text) is None


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("ubuntu:24.04", "https://registry-1.docker.io/v2/library/ubuntu/manifests/24.04"),
        ("vllm/vllm-openai:v1", "https://registry-1.docker.io/v2/vllm/vllm-openai/manifests/v1"),
        ("nvcr.io/nvidia/vllm:26.05", "https://nvcr.io/v2/nvidia/vllm/manifests/26.05"),
        ("127.0.0.1:5000/x:1", "http://127.0.0.1:5000/v2/x/manifests/1"),
        ("localhost.example.org/x:1", "https://localhost.example.org/v2/x/manifests/1"),
    ],
)
def test_where_a_tag_is_described(text: str, url: str) -> None:
    reference = remote.parse(text)
    assert reference is not None
    assert reference.url == url


class Registry(BaseHTTPRequestHandler):
    """A registry with one tag; gives a token to whoever logs in as user:word, or to all."""

    digest = DIGEST
    private = False
    scheme = "Bearer"
    #: In place of a token.
    strange = b""

    def do_GET(self) -> None:
        login = base64.b64encode(b"user:word").decode()
        if self.private and self.headers.get("Authorization") != f"Basic {login}":
            self.send_error(401)
            return
        body = self.strange or json.dumps({"token": f"for {self.path.partition('?')[2]}"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        asked = self.headers.get("Authorization", "")
        if self.scheme == "Bearer" and not asked.startswith("Bearer for service=registry&scope=repository"):
            self.send_response(401)
            where = f"http://{self.headers['Host']}/token"
            self.send_header(
                "WWW-Authenticate", f'Bearer realm="{where}",service="registry",scope="repository:a/b:pull"'
            )
        elif not self.path.endswith("/v2/a/b/manifests/1"):
            self.send_response(404)
        else:
            assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
            self.send_response(200)
            self.send_header("Docker-Content-Digest", self.digest)
        self.end_headers()

    def log_message(self, *_words: Any) -> None:
        return


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the host and port of the registry."""
    monkeypatch.setattr(Registry, "digest", DIGEST)
    monkeypatch.setattr(Registry, "private", False)
    for url in serve(ThreadingHTTPServer(("127.0.0.1", 0), Registry)):
        yield url.removeprefix("http://")


def ask(text: str, config: Path = Path("/nowhere")) -> str:
    reference = remote.parse(text)
    assert reference is not None
    return remote.digest_of_tag(reference, config)


def test_the_digest_of_a_tag_is_asked_for_with_a_token(registry: str) -> None:
    assert ask(f"{registry}/a/b:1") == DIGEST


def test_a_private_registry_is_asked_with_dockers_login(
    registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Registry, "private", True)
    with pytest.raises(ImageError, match=r"does not give a/b:1: it wants a login: run `docker login`"):
        ask(f"{registry}/a/b:1")
    auth = base64.b64encode(b"user:word").decode()
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {registry: {"auth": auth}}}), encoding="utf-8")
    assert ask(f"{registry}/a/b:1", config) == DIGEST


def test_a_tag_that_does_not_exist_is_named(registry: str) -> None:
    with pytest.raises(ImageError, match=r"127.0.0.1:\d+ does not give a/b:2: it has no such image or tag"):
        ask(f"{registry}/a/b:2")


def test_a_registry_without_an_answer_is_named() -> None:
    with pytest.raises(ImageError, match=r"127.0.0.1:9 does not answer for a/b:1: .*way to the registry"):
        ask("127.0.0.1:9/a/b:1")


@pytest.mark.parametrize(
    "strange", [b"[]", b"{}", b"3", b"\xff", b"[" * 100_000], ids=lambda strange: repr(strange[:4])
)
def test_a_registry_that_gives_no_token_is_named(
    registry: str, monkeypatch: pytest.MonkeyPatch, strange: bytes
) -> None:
    monkeypatch.setattr(Registry, "strange", strange)
    with pytest.raises(ImageError, match=r"127.0.0.1:\d+ does not answer for a/b:1: "):
        ask(f"{registry}/a/b:1")


def test_a_registry_without_a_digest_is_named(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "digest", "")
    with pytest.raises(ImageError, match="names no digest for a/b:1"):
        ask(f"{registry}/a/b:1")


# --- the module ------------------------------------------------------------------------------------------------


class EndedError(Exception):
    """The result of the module."""

    def __init__(self, **result: Any) -> None:
        super().__init__(result.get("msg", ""))
        self.result = result


class Module:
    """Stands for AnsibleModule on a node whose Docker Engine has some images."""

    def __init__(self, images: set[str], **params: Any) -> None:
        self.params = {"locked": "", "lock_file": "", "present": False, "docker_config": "/nowhere", **params}
        self.images = images

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        return (0 if argv[-1] in self.images else 1), "", ""

    def get_bin_path(self, name: str) -> str | None:
        return name if self.images else None

    def exit_json(self, **result: Any) -> None:
        raise EndedError(**result)

    def fail_json(self, **result: Any) -> None:
        raise EndedError(failed=True, **result)


def resolve(monkeypatch: pytest.MonkeyPatch, images: set[str] | None = None, **params: Any) -> EndedError:
    monkeypatch.setattr(image_digest, "AnsibleModule", lambda **_spec: Module(images or set(), **params))
    with pytest.raises(EndedError) as ended:
        image_digest.main()
    return ended.value


def test_a_tag_is_resolved_and_its_locked_digest_accepted(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(monkeypatch, reference=f"{registry}/a/b:1").result["digest"] == DIGEST
    assert resolve(monkeypatch, reference=f"{registry}/a/b:1", locked=DIGEST).result["digest"] == DIGEST


def test_a_moved_tag_is_refused_with_both_digests(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = resolve(monkeypatch, reference=f"{registry}/a/b:1", locked=OTHER, lock_file="/inv/image_lock.json")
    assert str(ended).startswith(
        f"{registry}/a/b:1 has the digest {DIGEST} now; /inv/image_lock.json has {OTHER}: the tag was moved. "
        "Nothing was pulled."
    )
    assert "image_relock=true" in str(ended)


def test_a_registry_that_is_down_matters_only_without_the_locked_image(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {f"127.0.0.1:9/a/b@{DIGEST}"}
    assert resolve(monkeypatch, here, reference="127.0.0.1:9/a/b:1", locked=DIGEST).result["digest"] == DIGEST
    assert "does not answer" in str(resolve(monkeypatch, reference="127.0.0.1:9/a/b:1", locked=DIGEST))
    assert "does not answer" in str(resolve(monkeypatch, here, reference="127.0.0.1:9/a/b:1"))
    at_hand = resolve(monkeypatch, reference="127.0.0.1:9/a/b:1", locked=DIGEST, present=True)
    assert at_hand.result["digest"] == DIGEST


def test_what_is_no_reference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(resolve(monkeypatch, reference="No Reference")).startswith("'No Reference' is not an image reference")
