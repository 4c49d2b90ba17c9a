# SPDX-License-Identifier: Apache-2.0
"""What the probe finds inside an image, and the floor of NCCL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._image import asserts

#: Stands for torch: maps a file of the library's name, as the loader does.
TORCH = """
import mmap, pathlib
__version__ = "2.11.0+cu130"
class version:
    cuda = {cuda!r}
file = open(pathlib.Path(__file__).with_name({library!r}), "rb")
kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
"""
#: Stands for ctypes: the library answers ncclGetVersion.
CTYPES = """
class c_int:
    value = 0
def byref(number):
    return number
class CDLL:
    def __init__(self, path):
        assert path.endswith("libnccl.so.2"), path
    def ncclGetVersion(self, number):
        number.value = {number}
"""


def probe(tmp_path: Path, cuda: str | None, library: str, number: int) -> dict[str, Any]:
    """Run the probe beside stand-ins of torch and ctypes; return what it found."""
    (tmp_path / "torch.py").write_text(TORCH.format(cuda=cuda, library=library), encoding="utf-8")
    (tmp_path / "ctypes.py").write_text(CTYPES.format(number=number), encoding="utf-8")
    (tmp_path / library).write_bytes(b"x" * 4096)
    done = subprocess.run(
        [sys.executable, "-c", asserts.PROBE, "torch,torch_cuda", "torch,no_such_module"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout.partition("gb10-image-probe ")[2])
    assert "no_such_module" in answer["errors"]
    found: dict[str, Any] = answer["found"]
    return found


@pytest.mark.parametrize(("number", "version"), [(22809, "2.28.9"), (22903, "2.29.3"), (23203, "2.32.3")])
def test_the_probe_asks_the_nccl_that_torch_loaded(tmp_path: Path, number: int, version: str) -> None:
    found = probe(tmp_path, "13.0", "libnccl.so.2", number)
    assert (found["torch"], found["torch_cuda"], found["nccl"]) == ("2.11.0+cu130", "13.0", version)


def test_a_torch_that_loads_no_nccl(tmp_path: Path) -> None:
    assert probe(tmp_path, "13.0", "libother.so", 1)["nccl"] is None
    assert "nccl" not in probe(tmp_path, None, "libnccl.so.2", 22809)


@pytest.mark.parametrize(
    ("found", "floor", "words"),
    [
        ({"torch_cuda": "13.0", "nccl": "2.28.9"}, "2.29.3", "torch loads NCCL 2.28.9; below 2.29.3 it deadlocks"),
        ({"torch_cuda": "13.0", "nccl": "2.29.2"}, "2.29.3", "torch loads NCCL 2.29.2"),
        ({"torch_cuda": "13.0", "nccl": None}, "2.29.3", "torch has loaded no libnccl"),
        ({"torch_cuda": "13.0", "nccl": "2.29.3"}, "2.29.3", ""),
        ({"torch_cuda": "13.0", "nccl": "2.30.4"}, "2.29.3", ""),
        ({"torch_cuda": "13.0", "nccl": "2.28.9"}, "", ""),
        ({"torch_cuda": None}, "2.29.3", ""),
        ({}, "2.29.3", ""),
    ],
)
def test_the_floor_of_nccl(found: dict[str, str | None], floor: str, words: str) -> None:
    problem = asserts.nccl_problem("gb10/x:1", found, floor)
    assert (words in problem) if words else problem == ""
