# SPDX-License-Identifier: Apache-2.0
"""Wheels of a lock from a server on this machine: resumed, verified, refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ansible_collections.gb10.cluster.plugins.action import image_wheels
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import download, locks
from tests.unit.plugins.module_utils.image.conftest import serve

CONTENT = {"a-1-py3-none-any.whl": b"a" * 300000, "b-2-py3-none-any.whl": b"b" * 5000}


def wheel(file: str, data: bytes | None = None) -> locks.Wheel:
    data = CONTENT[file] if data is None else data
    name, version = file.split("-")[:2]
    return locks.Wheel(name, version, hashlib.sha256(data).hexdigest(), f"{download.HOME}/x/{file}", len(data))


WHEELS = [wheel(file) for file in CONTENT]


class Index(BaseHTTPRequestHandler):
    """Serves the files, at most a piece of each answer, and keeps what was asked."""

    piece = 10**9
    ranges = True
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        file = self.path.rpartition("/")[2]
        self.send_response(200 if file in CONTENT else 404)
        self.send_header("Content-Length", str(len(CONTENT.get(file, b""))))
        self.end_headers()

    def do_GET(self) -> None:
        file = self.path.rpartition("/")[2]
        self.asked.append((self.path, self.headers.get("Range", "")))
        if file not in CONTENT:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT[file]) - start))
        self.end_headers()
        self.wfile.write(CONTENT[file][start : start + self.piece])

    def log_message(self, *_words: Any) -> None:
        return


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of the server."""
    for name, value in (("piece", 10**9), ("ranges", True), ("asked", [])):
        monkeypatch.setattr(Index, name, value)
    yield from serve(ThreadingHTTPServer(("127.0.0.1", 0), Index))


def fetch(folder: Path, mirror: str, wheels: list[locks.Wheel] | None = None) -> list[str]:
    return download.download_all(wheels or WHEELS, folder, mirror, lambda _line: None)


def test_wheels_are_downloaded_once(tmp_path: Path, mirror: str) -> None:
    assert download.missing(WHEELS, tmp_path) == WHEELS
    assert fetch(tmp_path, mirror) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == CONTENT
    assert sorted(Index.asked) == [(f"/x/{file}", "") for file in CONTENT]
    assert download.missing([*WHEELS, *WHEELS], tmp_path) == []


def test_a_download_goes_on_where_it_ended(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "piece", 120000)
    (tmp_path / "a-1-py3-none-any.whl.partial").write_bytes(b"a" * 1000)
    assert fetch(tmp_path, mirror, WHEELS[:1]) == []
    assert [asked for _path, asked in Index.asked] == ["bytes=1000-", "bytes=121000-", "bytes=241000-"]
    assert (tmp_path / "a-1-py3-none-any.whl").read_bytes() == CONTENT["a-1-py3-none-any.whl"]


def test_a_server_without_ranges_is_read_from_the_start(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "ranges", False)
    (tmp_path / "b-2-py3-none-any.whl.partial").write_bytes(b"x" * 1000)
    assert fetch(tmp_path, mirror, WHEELS[1:]) == []
    assert (tmp_path / "b-2-py3-none-any.whl").read_bytes() == CONTENT["b-2-py3-none-any.whl"]


def test_a_wrong_hash_is_refused_and_removed(tmp_path: Path, mirror: str) -> None:
    wrong = wheel("b-2-py3-none-any.whl", b"B" * 5000)
    (problem,) = fetch(tmp_path, mirror, [wrong])
    assert problem.startswith(
        f"b-2-py3-none-any.whl from {mirror}/x/b-2-py3-none-any.whl does not have the locked sha256"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_server_does_not_have_is_named(tmp_path: Path, mirror: str) -> None:
    (problem,) = fetch(tmp_path, mirror, [wheel("c-3-py3-none-any.whl", b"c")])
    assert problem.startswith(f"{mirror}/x/c-3-py3-none-any.whl: status 404.")


def test_a_server_that_sends_nothing_is_given_up(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "piece", 0)
    pauses: list[float] = []
    with pytest.raises(
        download.DownloadError, match=r"b-2-py3-none-any.whl is stuck at 0 of 5000 bytes: .* sends no more"
    ):
        download.download(WHEELS[1], tmp_path, mirror, download.Sums(1), pauses.append)
    assert len(pauses) == download.IDLE_ATTEMPTS - 1


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    assert download.room_problem(WHEELS, tmp_path) == ""
    huge = locks.Wheel("x", "1", "0" * 64, "https://x.org/x-1-py3-none-any.whl", 10**15)
    assert "GiB too few. Nothing was downloaded." in download.room_problem([huge], tmp_path)


def test_the_progress_is_shown(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    shown = threading.Event()
    original = download.download

    def slow(*arguments: Any) -> None:
        assert shown.wait(60)
        original(*arguments)

    def report(line: str) -> None:
        lines.append(line)
        shown.set()

    monkeypatch.setattr(download, "download", slow)
    assert download.download_all(WHEELS, tmp_path, mirror, report, every_seconds=0.01) == []
    assert lines[0].startswith("0 of 0 MiB of wheels, ")


# --- the action ------------------------------------------------------------------------------------------------


class Task:
    check_mode = False
    async_val = 0
    args: ClassVar[dict[str, Any]] = {}


def act(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, check: bool = False) -> dict[str, Any]:
    """Run the action for an image with one locked step."""
    plugin = image_wheels.ActionModule.__new__(image_wheels.ActionModule)
    plugin._task = Task()
    plugin._task.check_mode = check
    args = {
        "name": "x",
        "images": {"x": {"base": "y:1", "steps": [{"name": "s", "requirements": ["a"], "lock": True}]}},
        "locks_dir": str(tmp_path / "locks"),
        "wheels_dir": str(tmp_path / "wheels"),
        "mirror": mirror,
    }
    monkeypatch.setattr(plugin, "validate_argument_spec", lambda **_spec: (None, args), raising=False)
    monkeypatch.setattr("ansible.plugins.action.ActionBase.run", lambda *_words: {})
    found: dict[str, Any] = plugin.run()
    return found


def test_an_image_gets_its_wheels(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = act(tmp_path, mirror, monkeypatch)
    assert found["failed"]
    assert "x.s.txt" in found["msg"]
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "x.s.txt").write_text(locks.text_of("x", WHEELS), encoding="utf-8")
    found = act(tmp_path, mirror, monkeypatch, check=True)
    assert (found["changed"], found["mib"], (tmp_path / "wheels").exists()) == (True, 0.3, False)
    assert act(tmp_path, mirror, monkeypatch) == {
        "changed": True,
        "files": sorted(CONTENT),
        "mib": 0.3,
        "digests": {},
    }
    assert act(tmp_path, mirror, monkeypatch)["changed"] is False
    (tmp_path / "wheels" / "b-2-py3-none-any.whl").write_bytes(b"c" * 5000)
    assert act(tmp_path, mirror, monkeypatch)["files"] == ["b-2-py3-none-any.whl"]


# --- by address ------------------------------------------------------------------------------------------------

FILE = "a-1-py3-none-any.whl"
DIGEST = "sha256:" + hashlib.sha256(CONTENT[FILE]).hexdigest()


def test_a_wheel_by_address_gives_its_digest_at_the_first_fetch(tmp_path: Path, mirror: str) -> None:
    url = f"{mirror}/x/{FILE}"
    (tmp_path / f"{FILE}.partial").write_bytes(CONTENT[FILE][:1000])
    assert download.by_address(url, FILE, tmp_path, "") == DIGEST
    assert (tmp_path / FILE).read_bytes() == CONTENT[FILE]
    assert Index.asked == [(f"/x/{FILE}", "bytes=1000-")]
    assert download.by_address(url, FILE, tmp_path, DIGEST) == DIGEST
    assert len(Index.asked) == 1


def test_another_file_under_the_address_is_refused_with_both_digests(tmp_path: Path, mirror: str) -> None:
    known = "sha256:" + "1" * 64
    with pytest.raises(download.OtherFileError, match=rf"has {DIGEST[:23]}.*fetch is {known[:23]}.*It was removed"):
        download.by_address(f"{mirror}/x/{FILE}", FILE, tmp_path, known)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).write_bytes(b"mine")
    with pytest.raises(download.OtherFileError, match=f"Remove {tmp_path / FILE}"):
        download.by_address(f"{mirror}/x/{FILE}", FILE, tmp_path, DIGEST)
    assert (tmp_path / FILE).read_bytes() == b"mine"


def test_an_address_that_cannot_be_had_or_does_not_fit_is_named(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (f"{mirror}/x/none.whl", "http://127.0.0.1:9/x.whl"):
        with pytest.raises(download.DownloadError, match="cannot be fetched"):
            download.by_address(url, "none.whl", tmp_path, "")
    monkeypatch.setattr(download, "RESERVE", 10**18)
    with pytest.raises(download.DownloadError, match=r"too few\. Nothing was downloaded"):
        download.by_address(f"{mirror}/x/{FILE}", FILE, tmp_path, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("present", [True, False])
def test_the_module_returns_the_digests_to_record(tmp_path: Path, mirror: str, present: bool) -> None:
    address = f"{mirror}/x/{FILE if present else 'none.whl'}"
    plugin = image_wheels.ActionModule.__new__(image_wheels.ActionModule)
    plugin._task = type("Task", (), {"check_mode": False})()
    arguments = {
        "name": "probe",
        "images": {"probe": {"base": "ubuntu:24.04", "steps": [{"name": "kernels", "address": address}]}},
        "locks_dir": str(tmp_path),
        "wheels_dir": str(tmp_path / "wheels"),
        "mirror": "",
        "digests": {},
        "relock": False,
    }
    plugin.begin = lambda *_words: ({}, arguments)  # type: ignore[method-assign]
    found = plugin.run()
    assert found.get("failed") is None
    assert found["digests"] == ({address: DIGEST} if present else {})
    assert len(found.get("warnings", [])) == (0 if present else 1)
    arguments["digests"] = {address: "sha256:" + "1" * 64}
    assert plugin.run().get("failed", False) is present
    arguments["relock"] = True
    assert plugin.run().get("failed", False) is False
