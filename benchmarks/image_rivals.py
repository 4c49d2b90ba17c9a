# SPDX-License-Identifier: Apache-2.0
"""The role beside `docker save | ssh docker load`, on each of Docker's image stores."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.image_ways import CASES, Row, attempt
from lab.plan import container_name

if TYPE_CHECKING:
    from benchmarks.image import Bench

MIB = 2**20
REPO = Path(__file__).resolve().parents[1]
NEWER = REPO / ".lab" / "cache" / "newer-docker"
ETC = "/etc/docker/daemon.json"
MERGE = (
    "import json, pathlib, sys; p = pathlib.Path('" + ETC + "'); p.parent.mkdir(exist_ok=True); "
    "c = json.loads(p.read_text() or '{}') if p.exists() else {}; c.update(json.loads(sys.argv[1])); "
    "p.write_text(json.dumps(c))"
)


def address(bench: Bench, node: str) -> str:
    """Return a node's address on the fabric."""
    return bench.read(node, "ip -4 -o address show eth1 | awk '{print $4}' | cut -d/ -f1")


def save_and_load(bench: Bench, tag: str) -> float:
    """docker save | ssh docker load, to all workers in parallel, over the fabric; return the seconds."""
    key = bench.key()
    bench.on(bench.head, "install -d -m 700 /root/.bench && rm -f /root/.bench/*")
    bench.on(bench.head, f"umask 077 && cat > /root/.bench/key <<'KEY'\n{key}KEY\n")
    options = "-i /root/.bench/key -o UserKnownHostsFile=/root/.bench/known -o IdentitiesOnly=yes"
    pipes = []
    for worker in bench.workers:
        where = address(bench, worker)
        known = bench.read(worker, "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
        bench.on(bench.head, f"echo '{where} {known}' >> /root/.bench/known")
        pipes.append(f'(docker save {tag} | ssh {options} ansible@{where} sudo docker load --quiet) & pids+=" $!";')
    start = time.monotonic()
    bench.on(
        bench.head,
        "set -o pipefail; pids=; " + " ".join(pipes) + " for pid in $pids; do wait $pid || exit 1; done",
    )
    return time.monotonic() - start


@dataclass
class Rivals:
    """The ways side by side in one lab; ``tags`` are the first image and the one whose last layer changed."""

    bench: Bench
    failures: tuple[type[Exception], ...]
    tags: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    # --- the nodes -------------------------------------------------------------------------------------

    def configure(self, node: str, settings: dict[str, object], verb: str) -> None:
        """Merge settings into a node's daemon.json and make Docker take them over."""
        self.bench.on(node, f"python3 -c \"{MERGE}\" '{json.dumps(settings)}' && systemctl {verb} docker")

    def build(self) -> None:
        """Build both images on the head alone, the second with another last layer."""
        for seed in (1, 2):
            self.bench.set_seed(seed)
            self.bench.play(members=[self.bench.head], image_retain=5)
            self.tags.append(self.bench.tag())
        if len(set(self.tags)) < len(self.tags):
            raise self.failures[0](f"two last layers gave one image, {self.tags[0]}: start on a new lab")

    def to_containerd(self) -> None:
        """Give every node a Docker Engine that keeps images in containerd; the head gets its images back."""
        saved = "/var/tmp/bench-saved.tar"
        self.bench.on(self.bench.head, f"docker save --output {saved} {' '.join(self.tags)}")
        self.bench.lose(*self.bench.workers)
        subprocess.run([sys.executable, "-m", "lab.newer_docker", str(NEWER)], cwd=REPO, check=True)
        for node in self.bench.nodes:
            container = container_name(self.bench.name, int(node[-1]))
            self.bench.on(node, "rm -rf /var/tmp/newer-docker && mkdir -p /var/tmp/newer-docker")
            for package in sorted(NEWER.glob("*.deb")):
                subprocess.run(["docker", "cp", "-q", str(package), f"{container}:/var/tmp/newer-docker/"], check=True)
            self.bench.on(
                node,
                "ls /var/tmp/newer-docker/*.deb > /dev/null 2>&1 || exit 0; DEBIAN_FRONTEND=noninteractive apt-get "
                "install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold /var/tmp/newer-docker/*.deb",
            )
            # The other store's files stay, and would count as held.
            self.bench.on(node, "systemctl stop docker.socket docker; cd /var/lib/docker && rm -rf image overlay2")
            self.configure(node, {"features": {"containerd-snapshotter": True}}, "restart")
            status = self.bench.read(node, "docker info --format '{{json .DriverStatus}}'")
            if "io.containerd.snapshotter.v1" not in status:
                raise self.failures[0](f"{node} does not keep its images in containerd: {status}")
        self.bench.on(self.bench.head, f"docker load --quiet --input {saved} && rm {saved}")

    # --- the ways --------------------------------------------------------------------------------------

    def role(self, tag: str) -> float:
        self.bench.set_seed(self.tags.index(tag) + 1)
        return self.bench.play(image_retain=5)[1]

    def ssh(self, tag: str) -> float:
        return save_and_load(self.bench, tag)

    def compare(self, store: str) -> None:
        """Measure each way in each case and note its row."""
        for way, run in {"the role": self.role, "docker save | ssh docker load": self.ssh}.items():
            self.bench.on(self.bench.head, "rm -rf /var/lib/gb10/image-registry")
            self.bench.lose(*self.bench.workers)
            for case in CASES:
                row = self.measure(store, case, way, run)
                self.rows.append(row)
                self.bench.note(store, f"{case}: {way}", row.text())
                if row.problem:
                    break

    def measure(self, store: str, case: str, way: str, run: Callable[[str], float]) -> Row:
        tag = self.tags[0 if case == "first" else 1]

        def once() -> tuple[float, tuple[float, ...]]:
            totals: dict[str, int] = {}
            with self.bench.moved(totals):
                seconds = run(tag)
            if not self.bench.same_everywhere(tag=tag):
                raise self.failures[0](f"{tag} is not the same on every node")
            return seconds, tuple(totals[worker] / MIB for worker in self.bench.workers)

        def again() -> None:
            if case == "first":
                self.bench.lose(*self.bench.workers)

        seconds, received, problem = attempt(once, again, self.failures)
        return Row(store, case, way, seconds, received, problem)

    def run(self, stores: list[str]) -> None:
        """Measure on one store or both."""
        self.build()
        if "overlay2" in stores:
            self.compare("overlay2")
        if "containerd" in stores:
            self.to_containerd()
            self.compare("containerd")
