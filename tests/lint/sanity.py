# SPDX-License-Identifier: Apache-2.0
"""Run `ansible-test sanity` on the installed collection.

ansible-test insists on a directory .../ansible_collections/gb10/cluster, so the collection is built and installed there
as a user does it, next to links to the collections that galaxy.yml names. Each of its tests runs in a virtual
environment of its own, which ansible-test creates once and keeps under .ansible/sanity/home.

ansible-test fetches a script that installs pip into them from a server of the Ansible project.
A script that asks .venv's pip for the same is put in place of it beforehand, so the package
index is the one thing that must be reachable.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.lint import collection
from tests.lint.collection import REPO

STATE = REPO / ".ansible" / "sanity"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))

GET_PIP = """\
# Stands in for the script of the same purpose that ansible-test downloads.
import subprocess
import sys

wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
pip = [{pip_python!r}, "-m", "pip", "--python", sys.executable]
subprocess.check_call([*pip, "install", "--quiet", *wanted])
"""


def pip_version() -> str:
    """Return the version of pip that this ansible-test puts into its environments."""
    source = SITE_PACKAGES / "ansible_test" / "_internal" / "python_requirements.py"
    match = re.search(r"pip='([0-9.]+)'", source.read_text(encoding="utf-8"))
    if match is None:
        raise SystemExit(
            f"{source} no longer names the pip version of ansible-test's environments; "
            "adapt pip_version() in tests/lint/sanity.py to this ansible-core."
        )
    return match.group(1)


def place_bootstrap(home: Path) -> None:
    """Write the pip bootstrap script where ansible-test looks for a downloaded one."""
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"get_pip_{pip_version().replace('.', '_')}.py"
    target.write_text(GET_PIP.format(pip_python=sys.executable), encoding="utf-8")


def pip_settings(listing: str) -> dict[str, str]:
    """Return pip's effective settings for `install` from the output of `pip config list`.

    The environment wins over [install], which wins over [global], as in pip itself.
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            if line.startswith(f"{section}."):
                name, value = line.removeprefix(f"{section}.").split("=", 1)
                settings[name] = str(ast.literal_eval(value))
    return settings


def place_pip_settings(home: Path) -> None:
    """Give ansible-test's environments the caller's pip settings: it clears PIP_* from theirs.

    An index behind a mirror, a proxy or a certificate authority of its own stays reachable so.
    The file may hold a mirror's password, hence its mode.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    config = configparser.RawConfigParser()
    config["global"] = pip_settings(listing)
    target = home / ".config" / "pip" / "pip.conf"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch(mode=0o600)
    with target.open("w", encoding="utf-8") as file:
        config.write(file)


def lay_out(root: Path) -> Path:
    """Install the collection under `root` and link its dependencies; return the installed directory."""
    galaxy = yaml.safe_load((REPO / "galaxy.yml").read_text(encoding="utf-8"))
    collection.install(collection.build(root), root)
    collections = root / "ansible_collections"
    for dependency in galaxy["dependencies"]:
        namespace, name = dependency.split(".")
        source = SITE_PACKAGES / "ansible_collections" / namespace / name
        if not source.is_dir():
            raise SystemExit(
                f"galaxy.yml depends on {dependency}, which is missing in the environment ({source}). "
                "Add it to requirements.in and run `make lock venv`."
            )
        (collections / namespace).mkdir(exist_ok=True)
        (collections / namespace / name).symlink_to(source)
    return collections / str(galaxy["namespace"]) / str(galaxy["name"])


def main(argv: Sequence[str] | None = None) -> int:
    home = STATE / "home"
    place_bootstrap(home)
    place_pip_settings(home)
    env = dict(os.environ)
    env["HOME"] = str(home)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env.pop("ANSIBLE_CONFIG", None)  # the repository's settings are not the collection's
    env.pop("ANSIBLE_COLLECTIONS_PATH", None)
    # Outside the repository: under it, ansible-test would ask git, which ignores the copy.
    with tempfile.TemporaryDirectory(prefix="gb10-sanity-") as root:
        copy = lay_out(Path(root))
        env["ANSIBLE_COLLECTIONS_PATH"] = root
        arguments = list(sys.argv[1:] if argv is None else argv)
        return subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-test"),
                "sanity",
                "--color=no",
                "--truncate=0",
                f"--python={sys.version_info.major}.{sys.version_info.minor}",
                *arguments,
            ],
            cwd=copy,
            env=env,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
