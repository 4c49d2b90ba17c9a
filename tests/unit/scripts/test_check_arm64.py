# SPDX-License-Identifier: Apache-2.0
"""What is read from wheels, how a release takes the place of another, and what counts as an answer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._image.locks import Wheel
from lab.errors import LabError
from scripts import check_arm64, lock_images

# torch/version.py of torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl, in part.
VERSION = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.11.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
hip: Optional[str] = None
"""


def locked(file: str) -> Wheel:
    name, version = file.split("-")[:2]
    return Wheel(name, version, "0" * 64, f"https://example.org/{file}", 1)


def wheel(folder: Path, name: str, version: str, **modules: str) -> Path:
    """Write a wheel with modules (``__`` in a name is a slash) and return its path."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {key.replace("__", "/") + ".py": text for key, text in modules.items()}
    info = f"{name}-{version}.dist-info"
    record = "".join(f'"{file}",,\n' for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (VERSION, ("2.11.0+cu130", "13.0")),
        ("__version__ = '2.10.0+cpu'\ncuda: Optional[str] = None\n", ("2.10.0+cpu", "")),
        ("", ("", "")),
    ],
)
def test_the_version_that_torch_states(source: str, expected: tuple[str, str]) -> None:
    assert check_arm64.torch_version(source) == expected


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        ("torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl", True),
        ("vllm-0.22.1-cp38-abi3-manylinux_2_28_aarch64.whl", True),
        ("huggingface_hub-2.4.0-py3-none-any.whl", True),
        ("torch-2.11.0-cp311-cp311-manylinux_2_28_aarch64.whl", False),
        ("torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("torch-2.11.0-cp312-cp312-manylinux_2_39_aarch64.whl", False),
    ],
)
def test_a_wheel_of_another_platform_is_named(file: str, fits: bool) -> None:
    found = check_arm64.wrong_tags([locked(file)], lock_images.tags_of((3, 12)))
    assert found == ([] if fits else [f"{file} is not a wheel for CPython 3.12 on manylinux_2_35_aarch64."])


def test_another_release_takes_the_place_of_the_first(tmp_path: Path) -> None:
    site = tmp_path / "site"
    check_arm64.unpack(wheel(tmp_path, "nvidia_nccl_cu13", "2.28.9", nvidia__old="1", nvidia__lib="old"), site)
    check_arm64.unpack(wheel(tmp_path, "nvidia_cublas", "13.1", nvidia__blas="1"), site)
    check_arm64.unpack(wheel(tmp_path, "nvidia_nccl_cu13", "2.29.3", nvidia__lib="new"), site)

    assert sorted(path.name for path in (site / "nvidia").iterdir()) == ["blas.py", "lib.py"]
    assert (site / "nvidia" / "lib.py").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in site.glob("*.dist-info")) == [
        "nvidia_cublas-13.1.dist-info",
        "nvidia_nccl_cu13-2.29.3.dist-info",
    ]


def test_modules_beside_the_root_of_a_wheel_are_unpacked_too(tmp_path: Path) -> None:
    path = wheel(tmp_path, "z3", "4.15", **{"z3-4.15.data__purelib__z3": "1", "z3-4.15.data__data__man": "x"})
    check_arm64.unpack(path, tmp_path / "site")
    assert sorted(each.name for each in (tmp_path / "site").iterdir()) == ["z3-4.15.dist-info", "z3.py"]


def test_a_record_that_leaves_its_directory_is_not_followed() -> None:
    assert check_arm64.recorded('a.py,sha256=x,1\n"b,c.py",,\n../../bin/tool,,\n/etc/x,,\n') == ["a.py", "b,c.py"]


def test_the_answer_is_found_among_what_the_imports_print() -> None:
    line = 'gb10-image-probe {"found": {"torch": "2.11.0+cu130"}, "errors": {}}'
    assert check_arm64.answer_of(f"INFO 11-29 [importing.py:45]\n{line}\n")["found"] == {"torch": "2.11.0+cu130"}
    with pytest.raises(check_arm64.CheckError, match="no answer, but: killed"):
        check_arm64.answer_of("killed")


def test_every_locked_image_of_the_catalogue_can_be_checked() -> None:
    steps, assertions = check_arm64.steps_of("vllm-node")
    assert [name for name, _wheels in steps] == ["vllm", "ray", "flashinfer", "nccl"]
    assert "torch" in {each.name for each in steps[0][1]}
    assert assertions["torch_cuda"] == "13.0"


@pytest.mark.parametrize(
    ("image", "reason"), [("vllm-ray", "steps without a lock"), ("vllm-openai", "without a lock"), ("none", "none")]
)
def test_what_cannot_be_checked_is_said(image: str, reason: str) -> None:
    with pytest.raises(check_arm64.CheckError, match=reason):
        check_arm64.steps_of(image)


def test_a_release_without_a_wheel_for_the_python_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(command: list[str], _log: Path) -> None:
        asked.extend(command)
        raise LabError("pip failed")

    monkeypatch.setattr(check_arm64, "run_logged", refuse)
    fits = locked("huggingface_hub-2.4.0-py3-none-any.whl")
    assert check_arm64.for_python([fits], (3, 11), tmp_path / "wheels") == {fits.file: tmp_path / "wheels" / fits.file}
    with pytest.raises(LabError):
        check_arm64.for_python(
            [fits, locked("ray-2.60.0-cp312-cp312-manylinux2014_aarch64.whl")], (3, 11), tmp_path / "w"
        )
    assert asked[-1] == "ray==2.60.0"
    assert asked[asked.index("--python-version") + 1] == "3.11"
