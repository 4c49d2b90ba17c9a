# SPDX-License-Identifier: Apache-2.0
"""The agent against a packaged registry and `docker save | ssh docker load`, on each of Docker's image stores."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.image_ways import AGENT, CASES, Row, attempt, decision, ratios
from lab.plan import container_name
from lab.runs import run_playbook

if TYPE_CHECKING:
    from benchmarks.image import Bench

MIB = 2**20
PORT = 5099
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


def ways_into_a_store(bench: Bench, program: str) -> None:
    """Each way into an empty store on the head, one after the other."""
    bench.shape(False)
    bench.on(bench.head, "ln -sf /dev/null /etc/systemd/system/docker-registry.service")
    bench.on(bench.head, "DEBIAN_FRONTEND=noninteractive apt-get install -y -q docker-registry skopeo")
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": "/var/tmp/bench/registry"}},
        "http": {"addr": "127.0.0.1:5099"},
    }
    bench.on(bench.head, f"mkdir -p /var/tmp/bench && echo '{json.dumps(config)}' > /var/tmp/bench.yml")
    bench.on(
        bench.head, "systemd-run --unit bench-registry --collect docker-registry serve /var/tmp/bench.yml && sleep 2"
    )
    tag, remote = bench.tag(), f"127.0.0.1:5099/{bench.tag()}"
    store = "/var/tmp/bench/store"
    export = f"python3 {program} image export --image {tag} --store {store}"
    copy, source = "skopeo copy -q", f"docker-daemon:{tag}"
    bench.on(bench.head, f"docker tag {tag} {remote}")

    for name, command in {
        "docker push to docker-registry (gzip)": f"docker push -q {remote}",
        "skopeo, zstd": f"{copy} --dest-compress-format zstd --dest-compress {source} oci:{store}:bench",
        "skopeo, uncompressed": f"{copy} {source} dir:{store}",
        "the role, docker save, zstd -1": f"{export} --read save --level 1 > /dev/null",
        "the role, Docker's own files, zstd -1": f"{export} --read overlay2 --level 1 > /dev/null",
        "the role, Docker's own files, zstd -3": f"{export} --read overlay2 --level 3 > /dev/null",
        "the role, again: only verified": f"{export} --read overlay2 --level 3 > /dev/null",
    }.items():
        if "again" not in name:
            bench.on(bench.head, "rm -rf /var/tmp/bench/store")
        before, start = bench.processor_seconds(bench.head), time.monotonic()
        bench.on(bench.head, command)
        seconds, processor = time.monotonic() - start, bench.processor_seconds(bench.head) - before
        size = bench.on(bench.head, f"du -sm /var/tmp/bench/{'registry' if 'push' in name else 'store'} | cut -f1")
        bench.note("ways", name, f"{seconds:.1f} s {processor:.0f} CPU s {size} MiB")
    bench.on(
        bench.head, f"docker rmi {remote}; systemctl stop bench-registry; rm -rf /var/tmp/bench /var/tmp/bench.yml"
    )


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

    def prepare(self) -> None:
        """Start a registry on the head's fabric address, which every node accepts without TLS."""
        head = self.bench.head
        self.bench.on(head, "ln -sf /dev/null /etc/systemd/system/docker-registry.service")
        self.bench.on(head, "DEBIAN_FRONTEND=noninteractive apt-get install -y -q docker-registry skopeo")
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": "/var/tmp/bench-registry"}},
            "http": {"addr": self.host},
        }
        self.bench.on(head, f"echo '{json.dumps(config)}' > /var/tmp/bench.yml")
        for node in self.bench.nodes:
            self.configure(node, {"insecure-registries": [self.host]}, "reload")

    @property
    def host(self) -> str:
        return f"{address(self.bench, self.bench.head)}:{PORT}"

    def empty_registry(self) -> None:
        """Restart the registry without content."""
        self.bench.on(
            self.bench.head,
            "systemctl stop bench-registry 2> /dev/null; rm -rf /var/tmp/bench-registry; set -e; "
            "systemd-run --quiet --collect --unit bench-registry docker-registry serve /var/tmp/bench.yml; "
            f"until python3 -c 'import urllib.request as u; u.urlopen(\"http://{self.host}/v2/\")' 2> /dev/null; do "
            "systemctl is-active --quiet bench-registry; sleep 0.2; done",
        )

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
            # The other store's files stay, and the agent would read a worker's layers from them instead of the wire.
            self.bench.on(node, "systemctl stop docker.socket docker; cd /var/lib/docker && rm -rf image overlay2")
            self.configure(node, {"features": {"containerd-snapshotter": True}}, "restart")
            status = self.bench.read(node, "docker info --format '{{json .DriverStatus}}'")
            if "io.containerd.snapshotter.v1" not in status:
                raise self.failures[0](f"{node} does not keep its images in containerd: {status}")
        self.bench.on(self.bench.head, f"docker load --quiet --input {saved} && rm {saved}")

    # --- the ways --------------------------------------------------------------------------------------

    def agent(self, tag: str) -> float:
        self.bench.set_seed(self.tags.index(tag) + 1)
        return self.bench.play(image_retain=5)[1]

    def play_of(self, commands: Mapping[str, tuple[str, str]]) -> float:
        """Run commands as tasks of one play, as the agent's are; return the seconds without those of connecting.

        :param commands: name of the task: the command, and the one node that it runs on, "" for every worker.
        """
        head, first = self.bench.head, next(iter(commands))
        every = {"Connect to the head": ("true", head), "Connect to the workers": ("true", ""), **commands}
        tasks = [
            {
                "name": name,
                "ansible.builtin.shell": {"cmd": command, "executable": "/bin/bash"},
                "register": "pushed" if node else "each",
                **({"delegate_to": node, "run_once": True} if node else {"when": f"inventory_hostname != '{head}'"}),
            }
            for name, (command, node) in every.items()
        ]
        times: dict[str, float] = {}

        def observe(event: Mapping[str, Any]) -> None:
            if event.get("event") == "playbook_on_task_start":
                times[str(event.get("event_data", {}).get("task", ""))] = time.monotonic()
            elif event.get("event") == "playbook_on_stats":
                times["end"] = time.monotonic()

        play = {"name": "Distribute", "hosts": "gx10", "become": True, "gather_facts": False, "tasks": tasks}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "play.yml"
            path.write_text(json.dumps([play | {"any_errors_fatal": True}]), encoding="utf-8")
            inventory = [REPO / "molecule" / "shared" / "inventory", self.bench.state / "inventory.yml"]
            extra = {"gb10_lab_dir": str(self.bench.state)}
            result = run_playbook(path, inventory, extra, quiet=True, observer=observe)
        if result.rc != 0:
            raise self.failures[0](result.describe())
        return times["end"] - times[first]

    def ssh(self, tag: str) -> float:
        return save_and_load(self.bench, tag)

    def registry(self, push: str) -> Callable[[str], float]:
        """Return the way through a registry.

        :param push: command on the head; prints the digest of what it pushed from {tag} to {remote}.
        """

        def run(tag: str) -> float:
            remote = f"{self.host}/{tag}"
            repository = remote.rpartition(":")[0]
            pull = (
                f"image={repository}@{{{{ pushed.stdout_lines[-1] }}}}; docker pull --quiet $image && "
                f"docker tag $image {tag}"
            )
            push_here = "set -eo pipefail; " + push.format(tag=tag, remote=remote)
            return self.play_of({"Push the image": (push_here, self.bench.head), "Pull the image": (pull, "")})

        return run

    def ways(self, store: str) -> dict[str, Callable[[str], float]]:
        """Return the ways that a store allows: zstd layers only where the engine can unpack them."""
        engine = (
            "docker tag {tag} {remote}; docker push {remote} | sed -n 's/.*digest: \\(sha256:[0-9a-f]*\\).*/\\1/p'; "
            "docker rmi {remote} > /dev/null"
        )
        zstd = (
            "cd /var/tmp; docker save --output bench.tar {tag}; skopeo copy --quiet --dest-tls-verify=false "
            "--format oci --dest-compress-format zstd --digestfile bench-digest docker-archive:bench.tar "
            "docker://{remote}; cat bench-digest; rm bench.tar"
        )
        found = {AGENT: self.agent, "registry, docker push": self.registry(engine)}
        if store == "containerd":
            found["registry, zstd by skopeo"] = self.registry(zstd)
        return {**found, "docker save | ssh docker load": self.ssh}

    def compare(self, store: str) -> None:
        """Measure each way in each case and note its row."""
        for way, run in self.ways(store).items():
            self.empty_registry()
            self.bench.on(self.bench.head, "rm -rf /var/lib/gb10/image-store")
            self.bench.lose(*self.bench.workers)
            for case in CASES:
                row = self.measure(store, case, way, run)
                self.rows.append(row)
                self.bench.note(store, f"{case}: {way}", row.text())
                if row.problem:
                    break
        for (where, case), ratio in ratios(self.rows).items():
            if where == store:
                self.bench.note(store, f"{case}: fastest registry over the agent", f"{ratio:.2f}")

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
        """Measure on one store or both, then note what the rule says."""
        self.build()
        self.prepare()
        if "overlay2" in stores:
            self.compare("overlay2")
        if "containerd" in stores:
            self.to_containerd()
            self.compare("containerd")
        self.bench.note("rule", "who distributes images", decision(self.rows))
