# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.weights_hub against a hub of the test's own, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import hub as hub_client
from ansible_collections.gb10.cluster.plugins.modules import weights_hub
from tests.unit.helper import run_module

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
CONTENT = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "README.md": b"read me",
    "model.safetensors": bytes(range(256)) * 4000,
    "pytorch_model.bin": b"the same again",
}


class FakeHub(ThreadingHTTPServer):
    """Answers like a hub; `seen` has (path, range, authorization) of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.files = dict(CONTENT)
        self.token = ""
        #: Takes the place of the list of files.
        self.listed: Any = None
        #: By file: how many bytes to send of each answer that follows; the connection breaks off behind them.
        self.breaks: dict[str, list[int]] = {}
        #: Files whose first answer is cut or damaged.
        self.flip: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeHub

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def answer(self, code: int, body: bytes, cut: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def do_GET(self) -> None:
        hub = self.server
        hub.seen.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}" and "/cdn/" not in self.path:
            self.answer(401, b"")
        elif self.path == f"/api/models/org/model/revision/{COMMIT}?blobs=true":
            siblings: list[dict[str, Any]] = []
            for name, data in CONTENT.items():
                blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
                entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
                if name.endswith(".safetensors"):
                    entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                siblings.append(entry)
            listed = {"sha": COMMIT, "siblings": siblings} if hub.listed is None else hub.listed
            self.answer(200, json.dumps(listed).encode())
        elif self.path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = self.path.rsplit("/", 1)[1]
            data = hub.files[name]
            if name in hub.flip:
                hub.flip.discard(name)
                data = b"\0" + data[1:]
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            left = hub.breaks.get(name)
            self.answer(206 if start else 200, data[start:], left.pop(0) if left else None)
        else:
            self.answer(404, b"")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub: FakeHub, folder: Path, check: bool = False, **changes: Any) -> dict[str, Any]:
    args = {
        "repo": "org/model", "revision": COMMIT, "path": str(folder), "endpoint": hub.url, "reserve_gib": 0.0,
        **changes,
    }  # fmt: skip
    return run_module(weights_hub, args, check=check)


NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]


def test_what_vllm_needs_comes_with_its_commit_noted_and_nothing_else(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "model")
    assert (result["changed"], result["commit"], result["missing"]) == (True, COMMIT, NEEDED)
    assert sorted(path.name for path in (tmp_path / "model").iterdir() if path.is_file()) == NEEDED
    for name in NEEDED:
        assert (tmp_path / "model" / name).read_bytes() == CONTENT[name]
    note = tmp_path / "model" / hub_client.NOTES / "model.safetensors.metadata"
    assert note.read_text(encoding="utf-8").startswith(COMMIT)

    again = run(hub, tmp_path / "model")
    assert (again["changed"], again["fetched_bytes"]) == (False, 0)


def test_check_mode_only_reports(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "model", check=True)
    assert (result["changed"], result["missing"]) == (True, NEEDED)
    assert not (tmp_path / "model").exists()


def test_a_stopped_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    part = tmp_path / "model/.cache/gb10/model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT["model.safetensors"][:1000000])
    result = run(hub, tmp_path / "model")
    assert result["fetched_bytes"] == 1024000 - 1000000 + 4
    assert (f"/org/model/resolve/{COMMIT}/model.safetensors", "bytes=1000000-", None) in hub.seen


def test_a_flipped_byte_on_the_way_is_found_and_the_file_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.flip.add("config.json")
    run(hub, tmp_path / "model")
    assert (tmp_path / "model/config.json").read_bytes() == b"{}"


def test_a_file_that_never_has_its_hash_is_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = b"x" * len(CONTENT["model.safetensors"])
    result = run(hub, tmp_path / "model")
    assert "model.safetensors did not come with the hash that the hub publishes for it, twice" in result["msg"]
    assert not (tmp_path / "model/model.safetensors").exists()


def test_the_token_is_sent_and_never_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = TOKEN
    without = run(hub, tmp_path / "model")
    assert "No token was given (gb10_hf_token)" in without["msg"]
    wrong = run(hub, tmp_path / "model", token="hf_wrong")
    assert "The token that was given has no right to it" in wrong["msg"]
    right = run(hub, tmp_path / "model", token=TOKEN)
    assert right["changed"]
    assert not [found for found in (without, wrong, right) if "hf_" in json.dumps(found).replace("gb10_hf_token", "")]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"revision": "gone"}, "The hub has no org/model at revision gone; look at the name and the commit."),
        ({"endpoint": "http://127.0.0.1:1"}, "http://127.0.0.1:1 does not answer"),
        ({"reserve_gib": 1e9}, "Make room there."),
    ],
)
def test_what_cannot_be_had_gets_its_sentence(
    hub: FakeHub, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in run(hub, tmp_path / "model", **changes)["msg"]


def test_a_model_with_a_file_missing_on_the_hub_is_refused(
    monkeypatch: pytest.MonkeyPatch, hub: FakeHub, tmp_path: Path
) -> None:
    monkeypatch.delitem(CONTENT, "tokenizer.json")
    assert "org/model on the hub: no tokenizer file is there" in run(hub, tmp_path / "model")["msg"]


def test_a_file_that_does_not_end_is_not_downloaded_to_its_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["config.json"] = b"{}" + b" " * 50_000_000
    result = run(hub, tmp_path / "model")
    assert "config.json is longer than the 2 bytes that the hub publishes for it." in result["msg"]
    assert (tmp_path / "model/.cache/gb10/config.json.part").stat().st_size <= hub_client.BLOCK
    # The next run takes nothing of it for right.
    hub.files = dict(CONTENT)
    assert run(hub, tmp_path / "model")["changed"]
    assert (tmp_path / "model/config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    "listed",
    [
        [], {}, {"sha": COMMIT}, {"sha": "main", "siblings": []}, {"sha": COMMIT, "siblings": [7]},
        {"sha": COMMIT, "siblings": [{"rfilename": "a", "size": "1", "blobId": "x"}]},
        {"sha": COMMIT, "siblings": [{"rfilename": "a", "lfs": {"size": 1}}]},
        {"sha": COMMIT, "siblings": [{"rfilename": "a", "size": -1, "blobId": "x"}]},
    ],
)  # fmt: skip
def test_an_answer_that_is_no_list_of_files_is_refused(hub: FakeHub, tmp_path: Path, listed: Any) -> None:
    hub.listed = listed
    assert "answered something that is not a list of files" in run(hub, tmp_path / "model")["msg"]


def test_a_name_that_leads_out_of_the_directory_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    names = ["config.json", "tokenizer.json", "model.safetensors", "../../escape.py"]
    hub.listed = {"sha": COMMIT, "siblings": [{"rfilename": name, "size": 2, "blobId": "x"} for name in names]}
    assert "'../../escape.py' leads out of the model's directory." in run(hub, tmp_path / "model")["msg"]
    assert list(tmp_path.rglob("*")) == []


def test_a_connection_that_breaks_off_is_opened_again_as_long_as_it_brings_something(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.breaks["model.safetensors"] = [100_000, 0, 0, 100_000, 0, 0, 500_000]
    result = run(hub, tmp_path / "model")
    assert result["fetched_bytes"] == 1_024_000 + 4
    asked = [start for path, start, _key in hub.seen if path.endswith("model.safetensors")]
    assert asked == [None, *["bytes=100000-"] * 3, *["bytes=200000-"] * 3, "bytes=700000-"]


def test_a_hub_that_sends_nothing_three_times_ends_the_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.breaks["model.safetensors"] = [100_000, 0, 0, 0]
    result = run(hub, tmp_path / "model")
    assert "model.safetensors: http://127.0.0.1" in result["msg"]
    assert "sends nothing; run again, what has arrived is kept." in result["msg"]
    assert run(hub, tmp_path / "model")["fetched_bytes"] == 924_000


def test_a_plan_says_what_comes_and_how_long_it_takes_and_keeps_what_it_measured(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "model", state="planned", measure_seconds=60)
    assert (result["changed"], result["missing"], result["missing_bytes"]) == (False, NEEDED, 1_024_004)
    assert result["rate_bytes_per_s"] > 0
    assert result["report"].startswith(f"org/model from {hub.url}: 3 files, 1.0 MiB; about ")
    assert sorted(path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()) == [".part"] * 3
    assert run(hub, tmp_path / "model")["fetched_bytes"] == 0
    done = run(hub, tmp_path / "model", state="planned")
    assert (done["missing"], done["rate_bytes_per_s"]) == ([], 0)


def test_a_plan_in_check_mode_measures_nothing(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "model", check=True, state="planned")
    assert result["report"] == f"org/model from {hub.url}: 3 files, 1.0 MiB."
    assert not (tmp_path / "model").exists()


def test_a_plan_finds_that_there_is_no_room(hub: FakeHub, tmp_path: Path) -> None:
    result = run(hub, tmp_path / "model", check=True, state="planned", reserve_gib=1e9)
    assert "short of room for org/model" in result["msg"]


@pytest.mark.parametrize(
    ("count", "missing", "arrived", "rate", "sentence"),
    [
        (17, 20 * 2**30, 0, 100e6, "o/m from https://hub: 17 files, 20.0 GiB; about 3 min 35 s at 100.0 MB/s."),
        (
            1,
            2**30,
            2**29,
            2**29,
            "o/m from https://hub: 1 file, 1.0 GiB, of which 512.0 MiB are here already; about 1 s at",
        ),
        (2, 2**30, 0, 0, "o/m from https://hub: 2 files, 1.0 GiB."),
    ],
)
def test_the_report_of_a_download(count: int, missing: int, arrived: int, rate: float, sentence: str) -> None:
    assert hub_client.report("o/m", "https://hub", count, missing, arrived, rate).startswith(sentence)
