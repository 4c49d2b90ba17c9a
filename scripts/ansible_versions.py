# SPDX-License-Identifier: Apache-2.0
"""Try the control node's part on every release of ansible-core and Python that it claims: `make test-versions`.

For each pair there is an environment of its own, kept in ``--cache``: requirements.in with the other release, every
other package as requirements.lock pins it.  In it run the tests of what Ansible loads on the control node (actions,
callbacks, filters, lookups), the syntax check of site.yml, and playbooks/render.yml for a model of four nodes, whose
files must be the same with every pair.  A Python that is not on this machine is reported, and its pairs are not run.

Needs the standard library alone, so that it also runs in a chroot of a distribution that has another Python:
``--python`` names the interpreters in place of those that are found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
#: Release of ansible-core -> release of the package `ansible` with its collections, and the Pythons that both take.
RELEASES = {
    "2.21": ("14", ("3.12", "3.13", "3.14")),
    "2.20": ("13", ("3.12", "3.13", "3.14")),
    "2.19": ("12", ("3.11", "3.12", "3.13")),
}
TESTS = [f"tests/unit/plugins/{kind}" for kind in ("action", "callback", "filter", "lookup")]
MODEL = "qwen397"
#: Of requirements.in: the release under test, and checks that these tests do not use and that may ask for another one.
_LEFT_OUT = frozenset(
    "ansible ansible-core molecule ansible-lint yamllint ruff mypy pylint antsibull-changelog types-PyYAML "
    "types-requests types-docker".split()
)
_OWN_PINS = ("ansible", "ansible-core", "resolvelib")


@dataclass(frozen=True)
class Outcome:
    """What one pair did: a line for the report, the digest of what it rendered, and whether all went well."""

    text: str
    rendered: str
    good: bool


def requirements(text: str, core: str, package: str) -> list[str]:
    """Return the requirements of an environment: those of requirements.in with another release, without the linters."""
    found = [line.partition("#")[0].strip() for line in text.splitlines()]
    kept = [line for line in found if line and re.split(r"[<>=]", line)[0] not in _LEFT_OUT]
    return [f"ansible-core=={core}.*", f"ansible=={package}.*", *kept]


def constraints(lock: str) -> list[str]:
    """Return the pins of requirements.lock but for what follows from the release of ansible-core."""
    pins = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", lock, re.MULTILINE)
    return [f"{name}=={version}" for name, version in pins if name not in _OWN_PINS]


def pairs(pythons: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the pairs (ansible-core, Python) that can be run with these Pythons, and a sentence for each other one."""
    there = set(pythons)
    every = [(core, python) for core, (_package, each) in RELEASES.items() for python in each]
    return (
        [pair for pair in every if pair[1] in there],
        [
            f"ansible-core {core}, Python {python}: not run, there is none here"
            for core, python in every
            if python not in there
        ],
    )


def interpreters(named: Sequence[str]) -> dict[str, str]:
    """Return the path of an interpreter by version: those named, else python3.x on the PATH and those of pyenv."""
    wanted = {python for _package, each in RELEASES.values() for python in each}
    candidates = list(named) or [path for path in map(shutil.which, (f"python{each}" for each in wanted)) if path]
    if not named:
        home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        candidates += [str(path) for path in sorted(home.glob("versions/3.*/bin/python3"))]
    found: dict[str, str] = {}
    for path in candidates:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() in wanted:
            found.setdefault(done.stdout.strip(), path)
    return found


def environment(core: str, python: str, interpreter: str, cache: Path) -> Path:
    """Return the directory of a pair's programs, making its environment when it is missing or outdated.

    :raises subprocess.CalledProcessError: pip found no such release, or could not be reached.
    """
    wanted = requirements((REPO / "requirements.in").read_text(encoding="utf-8"), core, RELEASES[core][0])
    pins = constraints((REPO / "requirements.lock").read_text(encoding="utf-8"))
    folder = cache / f"ansible-{core}-python-{python}"
    stamp, text = folder / ".complete", "\n".join([*wanted, "", *pins, ""])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == text:
        return folder / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    subprocess.run([*pip, "--constraint", str(folder / "constraints.txt"), *wanted], check=True)
    stamp.write_text(text, encoding="utf-8")
    return folder / "bin"


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files below a directory."""
    total = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        total.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()


def try_pair(core: str, python: str, programs: Path) -> Outcome:
    """Run the tests, the syntax check and the rendering of one pair."""
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
    env |= {"ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(programs / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{' '.join(words)} with ansible-core {core}, Python {python}:", file=sys.stderr)
            print((done.stdout + done.stderr)[-3000:], file=sys.stderr, flush=True)
        return done

    version = call(
        "python", "-c", "import ansible.release as r, platform; print(r.__version__, platform.python_version())"
    )
    tests = call("python", "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS)
    syntax = call("ansible-playbook", "--syntax-check", "site.yml", "swap-model.yml", "playbooks/init.yml")
    with tempfile.TemporaryDirectory() as folder:
        where = ["-e", f"model={MODEL}", "-e", f"model_render_dir={folder}/made"]
        render = call("ansible-playbook", "playbooks/render.yml", "-i", "inventories/spark4", *where)
        rendered = digest(Path(folder) / "made") if render.returncode == 0 else ""
    counts = tests.stdout.strip().splitlines()[-1:] or ["no result"]
    words = version.stdout.split() or [core, python]
    marks = [
        f"{what} {'ok' if done.returncode == 0 else 'FAILED'}"
        for what, done in (("syntax", syntax), ("render", render))
    ]
    good = not any(done.returncode for done in (version, tests, syntax, render))
    text = f"ansible-core {words[0]}, Python {words[-1]}: {counts[0].strip('= ')}; {', '.join(marks)} {rendered[:12]}"
    return Outcome(text, rendered, good)


def main() -> int:
    """Try every pair, print one line for each, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="an interpreter; repeatable")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "gb10", help="where environments are kept"
    )
    args = parser.parse_args()
    found = interpreters(args.python)
    run, left_out = pairs(found)
    outcomes = []
    for core, python in run:
        outcomes.append(try_pair(core, python, environment(core, python, found[python], args.cache)))
        print(outcomes[-1].text, flush=True)
    for sentence in left_out:
        print(sentence)
    same = len({each.rendered for each in outcomes}) == 1
    if outcomes and not same:
        print(f"What playbooks/render.yml writes for {MODEL} is not the same with each.", file=sys.stderr)
    return 0 if outcomes and same and all(each.good for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
