# SPDX-License-Identifier: Apache-2.0
"""Fetch a Docker Engine that has the containerd image store, where the distribution's own is too old for it.

    python -m lab.newer_docker <directory>

Debian 12 has Docker 20.10; the Engine of Debian 13 runs there too and has the store. The packages are left in the
directory, which is empty where the nodes' own Engine will do. Nothing is installed on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from subprocess import run

from lab import apt_sources
from lab.errors import LabError
from lab.progress import run_logged

PACKAGES = ("docker.io", "docker-cli")
#: The first version of the Docker Engine that has the store, and a release of Debian that has a later one.
FIRST_MAJOR = 24
SUITE = "trixie"
SOURCES = Path("/etc/apt")


def candidate_major(policy: str) -> int:
    """Return the major version that ``apt-cache policy`` of one package would install; 0 when there is none."""
    found = re.search(r"^ *Candidate: (?:\d+:)?(\d+)", policy, re.MULTILINE)
    return int(found[1]) if found else 0


def newer_source(texts: list[tuple[str, str]]) -> str:
    """Return the line of a sources.list with this host's mirror and the newer release.

    :param texts: names and contents of the host's own files of sources.
    :raises LabError: when none of them is Debian's.
    """
    for source in apt_sources.parse_files(texts):
        keys = dict(source.options).get("signed-by", "")
        if source.suite == "bookworm" and "main" in source.components and "debian-archive" in keys:
            return apt_sources.Source(source.uri, SUITE, ("main",), (("signed-by", keys),)).line()
    raise LabError(
        f"No archive of Debian 12 is named in {SOURCES}, so the Docker Engine of {SUITE} cannot be had there."
    )


def fetch(target: Path) -> list[Path]:
    """Fetch the packages into a directory, all or none; return them."""
    own = run(["apt-cache", "policy", PACKAGES[0]], capture_output=True, text=True, check=False).stdout
    if candidate_major(own) >= FIRST_MAJOR:
        target.mkdir(parents=True, exist_ok=True)
        return []
    if target.is_dir():
        return sorted(target.glob("*.deb"))
    files = [*SOURCES.glob("sources.list"), *sorted(SOURCES.glob("sources.list.d/*"))]
    line = newer_source([(path.name, path.read_text(encoding="utf-8")) for path in files])
    work = target.with_name(f"{target.name}.{os.getpid()}").absolute()
    for folder in ("state/lists/partial", "cache/archives/partial", "debs"):
        (work / folder).mkdir(parents=True)
    (work / "sources.list").write_text(line + "\n", encoding="utf-8")
    options = apt_sources.isolated(work)
    log = target.with_name(f"{target.name}.log").absolute()
    try:
        run_logged(["apt-get", *options, "update", "-q"], log)
        run_logged(["apt-get", *options, "download", "-q", *PACKAGES], log, cwd=work / "debs")
        (work / "debs").rename(target)
    finally:
        shutil.rmtree(work)
    return sorted(target.glob("*.deb"))


def main() -> int:
    try:
        for package in fetch(Path(sys.argv[1])):
            print(package.name)
    except LabError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
