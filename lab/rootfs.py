# SPDX-License-Identifier: Apache-2.0
"""The lab's cached inputs: the node image, the nodes' package archive, the engine image's base.

Everything is made once and named after a hash of what it is made from; it is written under a
temporary name and renamed when complete, so that what exists under its name is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import run
from typing import Any

import docker.errors

from ansible_collections.gb10.cluster.plugins.module_utils._node import files as node_files
from lab import apt_sources
from lab.daemon import install, which
from lab.errors import LabError
from lab.locks import locked
from lab.plan import LABEL_LAB, SHARED
from lab.progress import Progress, run_logged

HERE = Path(__file__).parent
NODE_PACKAGES = HERE / "node-packages.txt"
NODE_BASE_PACKAGES = HERE / "node-base-packages.txt"
ENGINE_BASE_PACKAGES = HERE / "engine-base-packages.txt"
NODE_FILES = HERE / "node"

#: What `lab up --with-docker` installs in advance: Docker and what else the role host installs everywhere.
DOCKER_PACKAGES = ("ca-certificates", "docker.io", "earlyoom", "ethtool", "pigz", "rsync")
PACKAGES_IN_NODE = "/opt/lab-packages"
_INDEXER = NODE_FILES / "index-packages"
_ROOT_REPOSITORY = "gb10-lab-root"
_NODE_REPOSITORY = "gb10-lab-node"
_SHARED_LABEL = f'LABEL {LABEL_LAB}="{SHARED}"\n'
_INIT = "/usr/local/sbin/lab-init"
_LEAN = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
_KEY_LENGTH = 12
_OVERLAY = {"lab-init": "usr/local/sbin", "setup": "usr/share/gb10-lab"}


@dataclass(frozen=True)
class Prepared:
    """What nodes are made from."""

    image: str
    packages: Path


def read_packages(text: str) -> list[tuple[str, bool]]:
    """Return the (name, optional) pairs of a package list: one a line, ``#`` comments, ``name?``."""
    names: list[tuple[str, bool]] = []
    for raw in text.splitlines():
        name = raw.partition("#")[0].strip()
        if name:
            names.append((name.removesuffix("?"), name.endswith("?")))
    return names


def _names(path: Path) -> list[str]:
    return [name for name, _unused in read_packages(path.read_text(encoding="utf-8"))]


def _install(names: Sequence[str]) -> str:
    """Return the Dockerfile line that installs packages without leaving apt's lists behind."""
    return (
        "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "
        f"--no-install-recommends {' '.join(names)} && apt-get clean && rm -rf /var/lib/apt/lists/*\n"
    )


def key_of(*inputs: object) -> str:
    """Return the name that belongs to these inputs (anything that JSON can hold)."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def _tar(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """Return a tar of these files, the same for the same contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _node_overlay() -> bytes:
    """Return a tar of the files that a node's root file system gets before ``setup`` runs."""
    return _tar({f"{folder}/{name}": (NODE_FILES / name).read_bytes() for name, folder in _OVERLAY.items()}, 0o755)


def _run_through(container: Any, failed: str) -> None:
    """Run a container to its end; raise LabError with what it said last when it fails."""
    container.start()
    if container.wait()["StatusCode"] != 0:
        raise LabError(f"{failed}:\n{container.logs(tail=20).decode(errors='replace')}")


def _temporary(cache: Path, key: str) -> Path:
    return cache / f"tmp-{key}-{os.getpid()}"


class Cache:
    """Makes and finds the inputs of nodes under ``cache``.

    base_image: reference of an Ubuntu or Debian image to start from, or None for the host
    distribution's packages. apt_files: files of apt sources to read instead of the host's.
    with_docker: whether nodes have DOCKER_PACKAGES from the start.
    """

    def __init__(
        self,
        client: Any,
        cache: Path,
        progress: Progress,
        base_image: str | None = None,
        apt_files: Sequence[Path] = (),
        with_docker: bool = False,
    ) -> None:
        self._client = client
        self._cache = cache
        self._progress = progress
        self.base_image = base_image
        self.with_docker = with_docker
        self._apt_files = list(apt_files)
        self._log = cache / "build.log"
        cache.mkdir(parents=True, exist_ok=True)

    def _root_image(self) -> str:
        """Return the name of the image with a node's packages and none of the lab's own files."""
        return f"{_ROOT_REPOSITORY}:{key_of('root', self._made_from(), _names(NODE_BASE_PACKAGES), _LEAN)}"

    def plan(self) -> Prepared:
        """Return the names that the node image and package archive have or would have."""
        root = self._root_image()
        node = key_of("node", root, hashlib.sha256(_node_overlay()).hexdigest())
        wanted = read_packages(NODE_PACKAGES.read_text(encoding="utf-8"))
        packages = key_of("packages", root, wanted, _INDEXER.read_text(encoding="utf-8"))
        if self.with_docker:
            node = key_of("docker", node, packages, DOCKER_PACKAGES)
        return Prepared(f"{_NODE_REPOSITORY}:{node}", self._cache / f"packages-{packages}")

    def prepare(self) -> Prepared:
        """Return the node image and package archive, making what is missing."""
        planned = self.plan()
        if self.with_docker:
            plain = Cache(self._client, self._cache, self._progress, self.base_image, self._apt_files).prepare()
            with locked(self._cache / "node.lock"):
                if not self._has_image(planned.image):
                    self._install_docker(plain, planned.image)
            return planned
        root = self._root_image()
        status = None if self.base_image else self._cache / root.replace(":", "-") / "status"
        with locked(self._cache / "node.lock"):
            if not self._has_image(root) or (status and not status.exists()):
                self._make_root_image(root, status)
            if not self._has_image(planned.image):
                self._make_node_image(root, planned.image)
            if not planned.packages.is_dir():
                self._make_packages(root, planned.packages, status)
        return planned

    def engine_base(self, claim: bool) -> Path:
        """Return the root file system that engine images are built on, making it when missing.

        The name ``base.tar`` in the cache is a link to it if ``claim``, or if there is none yet: labs
        with different bases may run side by side, and only one of them can have the name.
        """
        names = _names(ENGINE_BASE_PACKAGES)
        with locked(self._cache / "base.lock"):
            made_from = self._made_from()
            key = key_of("base", made_from, names, _LEAN)
            tarball = self._cache / f"base-{key}.tar"
            if not tarball.exists():
                with self._progress.step("Make the engine image's base (base.tar)"):
                    partial = _temporary(self._cache, key).with_suffix(".tar")
                    if self.base_image:
                        self._export_from_image(names, partial)
                    else:
                        self._mmdebstrap(names, partial)
                    partial.rename(tarball)
            link = self._cache / "base.tar"
            if not link.exists() or (claim and link.readlink().name != tarball.name):
                fresh = self._cache / f"base.tar.{os.getpid()}"
                fresh.symlink_to(tarball.name)
                fresh.rename(link)
            return tarball

    # What the inputs are -------------------------------------------------------------------

    def _made_from(self) -> list[str]:
        if self.base_image:
            return ["image", self.base_image, platform.machine()]
        return ["packages", self._codename(), *(source.line() for source in self._sources())]

    def _codename(self) -> str:
        release = platform.freedesktop_os_release()
        codename = release.get("VERSION_CODENAME", "")
        if release.get("ID") not in ("debian", "ubuntu") or not codename:
            raise LabError(
                f"Nodes are made from the packages of a Debian or Ubuntu host, and this host is "
                f"{release.get('PRETTY_NAME', 'neither')}. Where a registry can be reached, use "
                "--base-image with an Ubuntu or Debian image."
            )
        return codename

    def _sources(self) -> list[apt_sources.Source]:
        files = self._apt_files or [
            Path("/etc/apt/sources.list"),
            *sorted(Path("/etc/apt/sources.list.d").glob("*.list")),
            *sorted(Path("/etc/apt/sources.list.d").glob("*.sources")),
        ]
        texts = [(path.name, path.read_text(encoding="utf-8")) for path in files if path.is_file()]
        where = ", ".join(map(str, self._apt_files)) or "/etc/apt"
        return apt_sources.select(apt_sources.parse_files(texts), self._codename(), where)

    def _apt_settings(self) -> list[str]:
        """Return the host's apt settings that a download needs: proxies and clock tolerance."""
        done = run(["apt-config", "dump"], capture_output=True, text=True, check=False)
        wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-")
        return [line for line in done.stdout.splitlines() if line.startswith(wanted)]

    # The node image ------------------------------------------------------------------------

    def _make_root_image(self, image: str, status: Path | None) -> None:
        """Make the image with a node's packages; keep its package status in ``status``, if given."""
        names = _names(NODE_BASE_PACKAGES)
        if status is None:
            with self._progress.step(f"Install a node's packages on {self.base_image}"):
                self._build(f"FROM {self.base_image}\n{_install(names)}{_SHARED_LABEL}", {}, image)
            return
        with self._progress.step("Make a node's root file system from the distribution's packages"):
            repository, _unused, tag = image.partition(":")
            rootfs = _temporary(self._cache, tag).with_suffix(".tar")
            try:
                self._mmdebstrap(names, rootfs)
                with tarfile.open(rootfs) as tar:
                    listed = tar.extractfile("./var/lib/dpkg/status")
                    assert listed is not None
                    text = listed.read()
                self._client.api.import_image_from_file(
                    str(rootfs), repository=repository, tag=tag, changes=[_SHARED_LABEL.strip()]
                )
            finally:
                rootfs.unlink(missing_ok=True)
            status.parent.mkdir(exist_ok=True)  # a directory of its own: apt keeps its locks there
            node_files.write(status, text)

    def _make_node_image(self, root: str, image: str) -> None:
        """Add the lab's own files to the packages."""
        with self._progress.step("Make the node image"):
            self._build(
                f"FROM {root}\n"
                "ADD overlay.tar /\n"
                "RUN /usr/share/gb10-lab/setup\n"
                "ENV container=docker\n"
                f'CMD ["{_INIT}"]\n{_SHARED_LABEL}',
                {"overlay.tar": _node_overlay()},
                image,
            )

    def _install_docker(self, plain: Prepared, image: str) -> None:
        """Install DOCKER_PACKAGES from the nodes' own archive in a container, and keep it as an image."""
        script = (
            f"echo 'deb [trusted=yes] file:{PACKAGES_IN_NODE} ./' > /etc/apt/sources.list.d/lab.list && "
            "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
            f"{' '.join(DOCKER_PACKAGES)} && apt-get clean && rm -rf /var/lib/apt/lists/*"
        )
        packages = {str(plain.packages.resolve()): {"bind": PACKAGES_IN_NODE, "mode": "ro"}}
        with (
            self._progress.step("Install Docker in the node image"),
            self._container(plain.image, script, volumes=packages, network_mode="none") as container,
        ):
            _run_through(container, "Docker could not be installed in the node image")
            repository, _unused, tag = image.partition(":")
            container.commit(repository, tag, changes=[f'CMD ["{_INIT}"]', _SHARED_LABEL.strip()])

    @contextmanager
    def _container(self, image: str, script: str, **more: Any) -> Iterator[Any]:
        """Yield a container that is to run a shell script, and remove it."""
        labels = {LABEL_LAB: SHARED}
        container = self._client.containers.create(image, command=["sh", "-c", script], labels=labels, **more)
        try:
            yield container
        finally:
            container.remove(force=True)

    def _has_image(self, image: str) -> bool:
        try:
            self._client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True

    def _mmdebstrap_program(self) -> str:
        """Return the path of mmdebstrap, installing it if it is missing and this is root."""
        with locked(self._cache / "install.lock"):
            found = which("mmdebstrap")
            if found is not None:
                return found
            install(
                ["mmdebstrap"],
                "The program mmdebstrap makes the nodes' file systems (--base-image does without it where a registry "
                "can be reached)",
                self._log,
            )
            return which("mmdebstrap") or "mmdebstrap"

    def _mmdebstrap(self, names: Sequence[str], target: Path) -> None:
        command = [
            self._mmdebstrap_program(),
            "--variant=minbase",
            "--format=tar",
            f"--include={','.join(names)}",
            *(f"--dpkgopt={option}" for option in _LEAN),
            *(f"--aptopt={setting}" for setting in self._apt_settings()),
            '--aptopt=Acquire::Languages "none"',
            '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
            self._codename(),
            str(target),
            "-",
        ]
        lines = "".join(source.line() + "\n" for source in self._sources())
        try:
            run_logged(command, self._log, stdin=lines)
        except LabError:
            target.unlink(missing_ok=True)
            raise

    def _build(self, dockerfile: str, files: dict[str, bytes], image: str) -> None:
        context = io.BytesIO(_tar({"Dockerfile": dockerfile.encode(), **files}))
        failed = f"The image {image} could not be built on {self.base_image}"
        try:
            self._client.images.build(fileobj=context, custom_context=True, tag=image, rm=True, forcerm=True)
        except docker.errors.BuildError as error:
            said = "".join(str(line.get("stream", "")) for line in error.build_log)
            raise LabError(f"{failed}: {error.msg}\n{said[-2000:]}") from error
        except docker.errors.APIError as error:
            raise LabError(f"{failed}: {error.explanation or error}") from error

    def _export_from_image(self, names: Sequence[str], target: Path) -> None:
        image = f"gb10-lab-base:{key_of(self.base_image, list(names))}"
        self._build(f"FROM {self.base_image}\n{_install(names)}{_SHARED_LABEL}", {}, image)
        with self._container(image, "true") as container, target.open("wb") as out:
            for chunk in container.export(chunk_size=4 << 20):
                out.write(chunk)

    # The package archive -------------------------------------------------------------------

    def _make_packages(self, root: str, target: Path, status: Path | None) -> None:
        """Fill the nodes' package archive; ``status`` is the root image's package status, if at hand."""
        wanted = read_packages(NODE_PACKAGES.read_text(encoding="utf-8"))
        with self._progress.step(f"Fetch {len(wanted)} packages for the nodes' own archive"):
            partial = _temporary(self._cache, target.name)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            partial.chmod(0o755)
            if status is None:
                self._download_in_container(root, wanted, partial)
            else:
                self._download_on_host(wanted, status, partial)
            partial.rename(target)

    def _download_on_host(self, wanted: Sequence[tuple[str, bool]], status: Path, target: Path) -> None:
        """Let the host's apt fetch what a node would: the node's package status, its sources."""
        work = target.with_suffix(".apt")
        shutil.rmtree(work, ignore_errors=True)
        for folder in ("state/lists/partial", "cache/archives/partial", "sources"):
            (work / folder).mkdir(parents=True)
        lines = "".join(source.line() + "\n" for source in self._sources())
        (work / "sources" / "lab.list").write_text(lines, encoding="utf-8")
        settings = [
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::parts "/dev/null";',
            'Dir::Etc::sourcelist "/dev/null";',
            f'Dir::Etc::sourceparts "{work}/sources";',
            f'Dir::State "{work}/state";',
            f'Dir::State::status "{status}";',
            f'Dir::Cache "{work}/cache";',
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
            *self._apt_settings(),
        ]
        (work / "apt.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
        env = dict(os.environ, APT_CONFIG=str(work / "apt.conf"), LC_ALL="C.UTF-8")
        run_logged(["apt-get", "update", "-q"], self._log, env=env)
        names = [name for name, optional in wanted if not (optional and not self._known(name, env))]
        run_logged(["apt-get", "install", "-q", "-y", "--download-only", *names], self._log, env=env)
        for package in sorted((work / "cache/archives").glob("*.deb")):
            package.rename(target / package.name)
        run_logged(["sh", str(_INDEXER), str(target)], self._log)
        shutil.rmtree(work)

    def _known(self, name: str, env: dict[str, str]) -> bool:
        done = run(["apt-cache", "show", name], env=env, capture_output=True, check=False)
        return done.returncode == 0

    def _download_in_container(self, image: str, wanted: Sequence[tuple[str, bool]], target: Path) -> None:
        """Let a container of the node image fetch the packages, for hosts that are not Debian's."""
        needed = " ".join(name for name, optional in wanted if not optional)
        script = (
            "set -eu; apt-get update -q; names=; "
            + "".join(
                f'apt-cache show {name} >/dev/null 2>&1 && names="$names {name}"; '
                for name, optional in wanted
                if optional
            )
            + f"apt-get install -q -y --no-install-recommends --download-only {needed} $names; "
            "mkdir /out; mv /var/cache/apt/archives/*.deb /out/; sh /index-packages /out"
        )
        with self._container(image, script) as container:
            container.put_archive("/", _tar({_INDEXER.name: _INDEXER.read_bytes()}))
            _run_through(container, f"The nodes' packages could not be fetched in {image}")
            stream, _unused = container.get_archive("/out")
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
                for member in tar.getmembers():
                    data = tar.extractfile(member) if member.isfile() else None
                    if data is not None:
                        (target / Path(member.name).name).write_bytes(data.read())
