# SPDX-License-Identifier: Apache-2.0
"""Compare the versions found inside an image with what its recipe asserts.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Runs inside the image.  Prints one JSON line; an import that fails is an answer, not a crash.
PROBE = """
import ctypes, importlib, importlib.metadata as md, json, sys
found, errors = {"python": sys.version.split()[0]}, {}
for name in sys.argv[1].split(","):
    if name == "torch_cuda" or not name:
        continue
    try:
        found[name] = md.version(name)
    except md.PackageNotFoundError:
        found[name] = None
for name in sys.argv[2].split(","):
    try:
        module = importlib.import_module(name)
        if name == "torch":
            found["torch"] = module.__version__
            found["torch_cuda"] = module.version.cuda
            if module.version.cuda:
                # The library that torch has loaded, whichever of those in the image that is.
                with open("/proc/self/maps") as maps:
                    paths = sorted({line.split()[-1] for line in maps if "/libnccl.so" in line})
                found["nccl"] = None
                if paths:
                    number = ctypes.c_int()
                    ctypes.CDLL(paths[0]).ncclGetVersion(ctypes.byref(number))
                    found["nccl"] = f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
    except BaseException as error:
        errors[name] = f"{type(error).__name__}: {error}"
print("gb10-image-probe " + json.dumps({"found": found, "errors": errors}))
"""

_COMPARISON = re.compile(r"^(>=|<=|==|!=|>|<)\s*([0-9][0-9a-zA-Z.+]*)$")


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers.group(0).split(".")) if numbers else ()


def satisfies(found: str, wanted: str) -> bool:
    """Return whether a version satisfies a condition: the exact string, or comma-separated comparisons of releases.

    :raises ValueError: ``wanted`` begins with an operator and is no list of comparisons.
    """
    if wanted[:1] not in "<>=!":
        return found == wanted
    for part in wanted.split(","):
        match = _COMPARISON.match(part.strip())
        if not match:
            raise ValueError(f"'{wanted}' is neither an exact version nor comparisons such as '>=5.0.0,<6'")
        operator, bound_text = match.groups()
        value, bound = _release(found), _release(bound_text)
        width = max(len(value), len(bound))
        value += (0,) * (width - len(value))
        bound += (0,) * (width - len(bound))
        if not {
            ">=": value >= bound,
            "<=": value <= bound,
            "==": value == bound,
            "!=": value != bound,
            ">": value > bound,
            "<": value < bound,
        }[operator]:
            return False
    return True


_CPU_TORCH = (
    "This is the CPU build that a plain resolve of the vLLM wheel selects: its metadata names torch 2.10.0 while its "
    "ABI needs {wanted}. Force-reinstall torch with --no-deps in a step of its own after vLLM, from the CUDA index, "
    "and build again."
)


def verdict(
    tag: str, assertions: Mapping[str, str], found: Mapping[str, str | None], errors: Mapping[str, str]
) -> list[str]:
    """Return one sentence for each assertion that an image does not meet, with cause and remedy where known."""
    wrong: list[str] = []
    for name, wanted in assertions.items():
        value = found.get(name)
        if name == "torch_cuda":
            if str(value) != str(wanted):
                wrong.append(f"{tag}: torch is built for CUDA {value or 'none'}, asserted is {wanted}.")
        elif value is None:
            wrong.append(f"{tag}: {name} is not installed, asserted is {wanted}. Add it to a step of the image.")
        elif not satisfies(str(value), str(wanted)):
            sentence = f"{tag}: {name} is {value}, asserted is {wanted}."
            if name == "torch" and str(value).endswith("+cpu") and not str(wanted).endswith("+cpu"):
                sentence += " " + _CPU_TORCH.format(wanted=wanted)
            wrong.append(sentence)
    for name, error in errors.items():
        sentence = f"{tag}: `import {name}` fails: {error}."
        if "libtorch_cuda.so" in error:
            sentence += " " + _CPU_TORCH.format(wanted=assertions.get("torch", "a CUDA build"))
        wrong.append(sentence)
    return wrong


def nccl_problem(tag: str, found: Mapping[str, str | None], floor: str) -> str:
    """Return why an image must not serve a model of several nodes, or an empty string.

    :param found: what the probe found; without ``torch_cuda`` torch is a CPU build and loads no NCCL.
    :param floor: the lowest NCCL that does not deadlock on aarch64, NVIDIA/nccl#2353; empty for a model of one node.
    """
    version = found.get("nccl")
    if not floor or not found.get("torch_cuda") or (version and _release(version) >= _release(floor)):
        return ""
    remedy = (
        f"Put a step of its own with nvidia-nccl-cu13 {floor} or later on top of the image, as vllm-node has it, or "
        "accept the risk with image_nccl_below_floor: warn."
    )
    if not version:
        return f"{tag}: torch has loaded no libnccl, so its version is unknown; {floor} or later is needed. {remedy}"
    return (
        f"{tag}: torch loads NCCL {version}; below {floor} it deadlocks on aarch64 between nodes (NVIDIA/nccl#2353). "
        f"{remedy}"
    )
