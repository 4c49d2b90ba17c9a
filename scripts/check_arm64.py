# SPDX-License-Identifier: Apache-2.0
"""Check the wheels of the locks on aarch64, on a machine that need not be one: `make check-arm64`.

1. Every wheel of ``locks/`` is downloaded once and kept; its hash and its platform tag are those of the lock for
   CPython 3.12, and ``torch/version.py`` is read.
2. The distribution's own arm64 Python, unpacked and run by qemu-user, gets the same releases: the wheels of the lock
   that it takes, and for the others those of its own version.  The steps of an image are unpacked in their order, and
   image_check's own program says what it finds, as it does inside the image.

Nothing is installed on this machine; what is downloaded stays in ``--cache``.  Needs apt-get, dpkg and a distribution
whose archive has arm64.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

from ansible_collections.gb10.cluster.plugins.module_utils._image.asserts import (  # noqa: E402
    PROBE,
    nccl_problem,
    verdict,
)
from ansible_collections.gb10.cluster.plugins.module_utils._model import image_recipe  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._image import download, locks  # noqa: E402
from ansible_collections.gb10.cluster.plugins.plugin_utils._image.locks import Wheel  # noqa: E402
from lab import apt_sources  # noqa: E402
from lab.errors import LabError  # noqa: E402
from lab.progress import Progress, run_logged  # noqa: E402
from scripts.lock_images import LOCKS, PLATFORMS, PYTHON, catalogue, tags_of  # noqa: E402

#: What wheels of CUDA builds expect of the distribution, besides the C library.
PACKAGES = ("python3", "libgomp1", "libnuma1", "libstdc++6")
NCCL = "nvidia-nccl-cu13"


class CheckError(Exception):
    """The check cannot be made; the text says why."""


def wrong_tags(wheels: Iterable[Wheel], tags: Mapping[Tag, int]) -> list[str]:
    """Return a sentence for each wheel that the images' Python does not take."""
    return [
        f"{wheel.file} is not a wheel for CPython {PYTHON[0]}.{PYTHON[1]} on {PLATFORMS[0]}."
        for wheel in wheels
        if not parse_wheel_filename(wheel.file)[3] & tags.keys()
    ]


def torch_version(source: str) -> tuple[str, str]:
    """Return the version and the CUDA version that the text of ``torch/version.py`` states; empty texts for none."""
    found: dict[str, str] = {}
    for line in ast.parse(source).body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        value = getattr(line, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found |= {each.id: value.value for each in targets if isinstance(each, ast.Name)}
    return found.get("__version__", ""), found.get("cuda", "")


def recorded(record: str) -> list[str]:
    """Return the files that a distribution's RECORD names, relative to its directory."""
    return [row[0] for row in csv.reader(record.splitlines()) if row and not row[0].startswith(("/", ".."))]


def remove(name: str, site: Path) -> None:
    """Remove a distribution from a directory, as pip does before it installs another release."""
    for folder in site.glob("*.dist-info"):
        if canonicalize_name(folder.name.split("-", 1)[0]) == name:
            for file in recorded((folder / "RECORD").read_text(encoding="utf-8")):
                (site / file).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def unpack(file: Path, site: Path) -> None:
    """Unpack a wheel's modules into a directory, in place of another release of it."""
    remove(canonicalize_name(file.name.split("-", 1)[0]), site)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(site)
    for folder in site.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (folder / part).is_dir():
                shutil.copytree(folder / part, site, dirs_exist_ok=True)
        shutil.rmtree(folder)


def steps_of(image: str) -> tuple[list[tuple[str, list[Wheel]]], dict[str, str]]:
    """Return the locked steps of an image with their wheels, from the lowest, and what the recipe asserts.

    :raises CheckError: the image is not in the catalogue, or not built from locks alone.
    """
    recipe, errors = image_recipe.resolve(catalogue(), image)
    if errors:
        raise CheckError("\n".join(errors))
    # A wheel by address is optional: the image is built without it as well.
    steps = [step for step in recipe["steps"] if not step.get("address")]
    if not steps or not all(step["lock"] for step in steps):
        raise CheckError(f"{image} has steps without a lock, so what they install is not known here.")
    files = [(step["name"], LOCKS / locks.lock_name(step)) for step in steps]
    return [(name, locks.parse(path.read_text(encoding="utf-8"))) for name, path in files], recipe["assertions"]


def check_locks(cache: Path) -> list[str]:
    """Bring every wheel of every lock into the cache; return one sentence for each that is wrong."""
    wheels = [wheel for path in sorted(LOCKS.glob("*.txt")) for wheel in locks.parse(path.read_text(encoding="utf-8"))]
    cache.mkdir(parents=True, exist_ok=True)
    absent = download.missing(wheels, cache)
    problem = download.room_problem(absent, cache)
    problems = [problem] if problem else download.download_all(absent, cache, "", lambda line: print(line, flush=True))
    problems += wrong_tags(wheels, tags_of(PYTHON))
    if problems:
        return problems
    size = sum(wheel.size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.0f} MiB: every hash is the lock's, every tag fits CPython 3.12 on aarch64.")
    for wheel in wheels:
        if wheel.name == "torch":
            with zipfile.ZipFile(cache / wheel.file) as archive:
                version, cuda = torch_version(archive.read("torch/version.py").decode())
            print(f"{wheel.file}: torch/version.py states {version}, CUDA {cuda}.")
    return []


class Emulated:
    """The distribution's arm64 Python below a directory, and qemu to run it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root = work / "root"
        self.qemu = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static"

    def fetch(self) -> None:
        """Download and unpack both, unless they are there.

        :raises LabError: the distribution's archive is not known, or does not have them.
        """
        if (self.work / ".complete").exists():
            return
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in ("state/lists/partial", "cache/archives/partial", "debs"):
            (self.work / folder).mkdir(parents=True)
        status = self.work / "status"
        status.touch()
        codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
        etc = Path("/etc/apt")
        files = [
            *etc.glob("sources.list"),
            *etc.glob("sources.list.d/*.list"),
            *etc.glob("sources.list.d/*.sources"),
        ]
        texts = [(path.name, path.read_text(encoding="utf-8")) for path in files]
        lines = [each.line() for each in apt_sources.select(apt_sources.parse_files(texts), codename, str(etc))]
        (self.work / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        log = self.work.with_suffix(".log")
        own = ["apt-get", *apt_sources.isolated(self.work)]
        arm = ["apt-get", *apt_sources.isolated(self.work, APT__Architecture="arm64", Dir__State__status=str(status))]
        # An empty list would keep the machine's own architectures.
        arm += ["-o", "APT::Architectures::=arm64"]
        run_logged([*own, "update", "-q"], log)
        run_logged([*own, "download", "-q", "qemu-user-static"], log, cwd=self.work / "debs")
        for deb in (self.work / "debs").glob("*.deb"):
            run_logged(["dpkg", "-x", str(deb), str(self.work / "qemu")], log)
        run_logged([*arm, "update", "-q"], log)
        run_logged([*arm, "install", "-q", "-y", "--download-only", "--no-install-recommends", *PACKAGES], log)
        for deb in (self.work / "cache" / "archives").glob("*.deb"):
            run_logged(["dpkg", "-x", str(deb), str(self.root)], log)
        (self.work / ".complete").touch()

    def python(self, code: str, *words: str, site: Path | None = None) -> str:
        """Run Python code and return what it prints.

        :param site: directory of the modules besides those of the standard library.
        :raises CheckError: it failed.
        """
        command = ["env", "-i", f"HOME={self.work}", "PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"]
        command += [f"PYTHONPATH={site}"] if site else []
        command += [str(self.qemu), "-L", str(self.root), str(self.root / "usr/bin/python3"), "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckError(f"Python under emulation ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


def for_python(wheels: Sequence[Wheel], python: tuple[int, int], cache: Path) -> dict[str, Path]:
    """Return the file of each wheel for a Python: the lock's own where it fits, else the same release's for that one.

    :raises LabError: a release has no wheel for it.
    """
    tags = tags_of(python)
    found = {wheel.file: cache / wheel.file for wheel in wheels if parse_wheel_filename(wheel.file)[3] & tags.keys()}
    others = [wheel for wheel in wheels if wheel.file not in found]
    folder = cache.with_name(f"{cache.name}-cp{python[0]}{python[1]}")
    folder.mkdir(exist_ok=True)

    def there() -> dict[tuple[str, str], Path]:
        named = ((path, parse_wheel_filename(path.name)) for path in folder.glob("*.whl"))
        return {(str(name), str(version)): path for path, (name, version, _build, _tags) in named}

    absent = [f"{wheel.name}=={wheel.version}" for wheel in others if (wheel.name, wheel.version) not in there()]
    if absent:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--implementation", "cp", "--python-version", f"{python[0]}.{python[1]}", "--dest", str(folder)]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        run_logged([*command, *absent], cache.with_suffix(".log"))
    return found | {wheel.file: there()[wheel.name, wheel.version] for wheel in others}


def answer_of(output: str) -> dict[str, Any]:
    """Return what image_check's program printed.

    :raises CheckError: it printed no answer.
    """
    match = re.search(r"^gb10-image-probe (.*)$", output, re.MULTILINE)
    if match is None:
        raise CheckError(f"image_check's program printed no answer, but: {output[-2000:]}")
    found: dict[str, Any] = json.loads(match[1])
    return found


def check_emulated(image: str, cache: Path, progress: Progress) -> list[str]:
    """Run image_check's program on an image's wheels under emulation; return one sentence for each that is wrong."""
    steps, assertions = steps_of(image)
    emulated = Emulated(cache / "arm64")
    emulated.fetch()
    machine, number = emulated.python("import platform; print(platform.machine(), platform.python_version())").split()
    python = (int(number.split(".")[0]), int(number.split(".")[1]))
    files = for_python([wheel for _name, wheels in steps for wheel in wheels], python, cache / "wheels")
    own = sum(path.parent == cache / "wheels" for path in files.values())
    print(f"Python {number} on {machine}: {own} wheels of the lock, {len(files) - own} of the same releases for it.")
    role = yaml.safe_load((REPO / "roles" / "image" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    floor = str(role["image_nccl_floor"])
    problems: list[str] = []
    pinned = {NCCL: ""}
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        site = Path(folder)
        for place, (step, wheels) in enumerate(steps):
            with progress.step(f"Unpack the {len(wheels)} wheels of step {step}"):
                for wheel in wheels:
                    unpack(files[wheel.file], site)
            pinned |= {wheel.name: wheel.version for wheel in wheels}
            last = place == len(steps) - 1
            if not last and "torch" not in {wheel.name for wheel in wheels}:
                continue
            imports = ["torch", "vllm", "vllm.engine.arg_utils"] if last else ["torch"]
            with progress.step(f"Import {', '.join(imports)} under emulation"):
                said = answer_of(emulated.python(PROBE, ",".join(assertions), ",".join(imports), site=site))
            found = said["found"]
            shown = {**found, **said["errors"]}
            print(f"{image} up to step {step}: {', '.join(f'{key} {value}' for key, value in sorted(shown.items()))}")
            if found.get("nccl") != pinned[NCCL]:
                problems.append(f"torch loads NCCL {found.get('nccl')}, the lock has {pinned[NCCL]}.")
            below = nccl_problem(image, found, floor)
            if last:
                problems += [*verdict(image, assertions, found, said["errors"]), *([below] if below else [])]
            elif below:
                print(f"  image_check would refuse it for two nodes or more: {below}")
    return problems


def main() -> int:
    """Check, report, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--image", default="vllm-node", help="image of the catalogue whose wheels are imported")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "gb10", help="where downloads are kept")
    parser.add_argument("--no-emulation", action="store_true", help="only the wheels of the locks")
    args = parser.parse_args()
    try:
        problems = check_locks(args.cache / "wheels")
        if not problems and not args.no_emulation:
            problems = check_emulated(args.image, args.cache, Progress())
    except (CheckError, LabError) as problem:
        problems = [str(problem)]
    for each in problems:
        print(each, file=sys.stderr)
    if not problems:
        print(
            "Not shown by this: anything on a GPU, and compiled modules of CPython 3.12 where this Python is another."
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
