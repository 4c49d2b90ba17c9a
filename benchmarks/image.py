# SPDX-License-Identifier: Apache-2.0
"""Move a real engine image between simulated nodes and hold what moved against its bounds.

    make bench-image
    make bench-image ARGS='--stages unshaped,last-layer --keep'

Makes a lab of its own, of four nodes unless told otherwise, builds the lab's engine image (vLLM's CPU build; with
--image small, one without vLLM) on the head, and measures:

    overlay2     the role and docker save | ssh docker load, in three cases: first distribution, only the last layer
    containerd     changed, nothing to do; on each of Docker's image stores. The last stage on a lab, for it changes the
                   nodes' Docker Engine.
    unshaped     docker save | ssh docker load to all in parallel, then the role, on links as fast as the host
    last-layer   only the last layer changed; at most 1.1 times that layer on each worker's link
    power-cut    a worker loses its power half-way; the next run brings the same image
    shaped       the same on a fabric that is slower than the host's processors; at least 2 times faster
    refusals     torch wrong, disk too small: refused before a byte moves; a damaged layer is pushed anew
    restore      the image lost on the head and a worker, brought back from the backup without a build

Prints one line a figure, writes all to .lab/bench-image.json and exits 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
for _path in (REPO / ".collections", REPO):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

import docker  # noqa: E402

from benchmarks.image_rivals import Rivals, save_and_load  # noqa: E402
from benchmarks.image_ways import attempt  # noqa: E402
from lab.plan import container_name  # noqa: E402
from lab.runs import RunResult, run_playbook  # noqa: E402

LAB = "bench-image"
STATE = REPO / ".lab" / LAB
REPORT = REPO / ".lab" / "bench-image.json"
NODES = ["gx10-1", "gx10-2", "gx10-3", "gx10-4"]
MIB = 2**20
STAGES = ("unshaped", "last-layer", "power-cut", "shaped", "refusals", "restore", "overlay2", "containerd")
REGISTRY = "/var/lib/gb10/image-registry/docker/registry/v2"
#: Random bytes do not compress: this is what the last layer takes on the wire too.
LAST_LAYER_MIB = 30

#: An image of layers that compress as an engine's do, from the lab's base alone.
SMALL: dict[str, Any] = {
    "base": "gb10/base",
    "base_archive": str(REPO / ".lab" / "cache" / "base.tar"),
    "venv": "",
    "steps": [
        {
            "name": "python",
            "run": ["cp -a /usr/lib/python3 /opt/python && cp -a /usr/lib/x86_64-linux-gnu /opt/libraries"],
        },
        {"name": "tools", "run": ["cp -a /usr/bin /opt/bin && cp -a /usr/share /opt/share"]},
    ],
}

PLAY = """
- name: {title}
  hosts: gx10
  become: true
  gather_facts: {facts}
  any_errors_fatal: true
  tasks:
    - name: Run the role
      ansible.builtin.import_role:
        name: gb10.cluster.{role}
        tasks_from: {entry}
"""


def blob(digest: str) -> str:
    """Return the file of a layer in the head's registry."""
    return f"{REGISTRY}/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"


class BenchError(Exception):
    """Something that is not a measurement went wrong."""


@dataclass
class Line:
    """One figure, with the bound that it is held against, if any."""

    stage: str
    what: str
    value: str
    bound: str = ""
    holds: bool = True


@dataclass
class Bench:
    """The lab of the benchmark, and what was found in it."""

    fabric_rate: str
    nodes: list[str] = field(default_factory=lambda: NODES)
    small: bool = False
    lines: list[Line] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """What the last layer is made from; kept with the lab."""
        path = STATE / "seed"
        return int(path.read_text(encoding="utf-8")) if path.exists() else 1

    name = LAB
    state = STATE

    @property
    def head(self) -> str:
        return self.nodes[0]

    @property
    def workers(self) -> list[str]:
        return self.nodes[1:]

    def key(self) -> str:
        """Return the private key that opens every node of the lab."""
        return (STATE / "id_ed25519").read_text(encoding="utf-8")

    def set_seed(self, seed: int) -> None:
        (STATE / "seed").write_text(str(seed), encoding="utf-8")

    # --- the lab ---------------------------------------------------------------------------------------

    def lab(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "lab", *words, "--name", LAB], cwd=REPO, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise BenchError(f"python -m lab {' '.join(words)}: {done.stderr.strip()}")

    def shape(self, shaped: bool) -> None:
        rate = ["--fabric-rate", self.fabric_rate, "--mgmt-rate", "1gbit"] if shaped else ["--unshaped"]
        self.lab("up", "--nodes", str(len(self.nodes)), "--quiet", *rate)

    def on(self, node: str, command: str, check: bool = True) -> str:
        """Run a shell command as root on a node, not through Ansible; return what it prints."""
        container: Any = docker.from_env(timeout=1200).containers.get(container_name(LAB, int(node[-1])))
        code, output = container.exec_run(["bash", "-c", command])
        text: str = output.decode(errors="replace")
        if check and code != 0:
            raise BenchError(f"{node}: {command} ended with {code}: {text}")
        return text.strip()

    def read(self, node: str, command: str) -> str:
        """Run a command that prints something and changes nothing; Docker loses the output of one now and then."""
        for _attempt in range(5):
            if found := self.on(node, command):
                return found
        raise BenchError(f"{node}: {command} printed nothing")

    def processor_seconds(self, node: str) -> float:
        """Return the processor time that a node has taken so far."""
        container: Any = docker.from_env(timeout=1200).containers.get(container_name(LAB, int(node[-1])))
        return float(container.stats(stream=False)["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9

    def counted(self, direction: str) -> dict[str, int]:
        """Return what each node's fabric port has sent (tx) or received (rx), in bytes."""
        path = f"/sys/class/net/eth1/statistics/{direction}_bytes"
        return {node: int(self.read(node, f"cat {path}")) for node in self.nodes}

    @contextmanager
    def moved(self, totals: dict[str, int]) -> Iterator[None]:
        """Fill ``totals`` with what each node received on the fabric, and what the head sent as "sent"."""
        received, sent = self.counted("rx"), self.counted("tx")
        yield
        totals.update({node: count - received[node] for node, count in self.counted("rx").items()})
        totals["sent"] = self.counted("tx")[self.head] - sent[self.head]

    # --- the role --------------------------------------------------------------------------------------

    def recipe(self, **more: Any) -> dict[str, Any]:
        """Return the catalogue: the lab's engine image with a last layer of random bytes of this seed."""
        script = (
            f"import random, sys; sys.stdout.buffer.write(random.Random({self.seed}).randbytes({LAST_LAYER_MIB} << 20))"
        )
        last = {"name": "last", "run": [f"python3 -c '{script}' > /opt/last"]}
        images = {"bench": {**(SMALL if self.small else {"from": "vllm-lab"}), "steps": [last]}}
        if self.small:
            images["bench"]["steps"] = [*SMALL["steps"], last]
        return {**images, **more}

    def play(
        self,
        entry: str = "main",
        role: str = "image",
        members: Sequence[str] = (),
        ok: bool | None = True,
        **options: Any,
    ) -> tuple[RunResult, float]:
        """Run an entry point of a role; return the result and how long the image was on its way."""
        cancel: Callable[[], bool] | None = options.pop("cancel", None)
        catalogue = json.dumps(self.recipe(**options.pop("images", {})))
        extra: dict[str, Any] = {
            "gb10_lab_dir": str(STATE),
            "image_name": "bench",
            "image_mods": [],
            "image_catalogue": "{{ gb10_images | combine(" + catalogue + ") }}",
            "image_wheels_dir": str(REPO / ".lab" / "wheels"),
            "image_head": self.head,
            "image_members": list(members or self.nodes),
            "image_head_address": "{{ hostvars['gx10-1'].gb10_fabric_address }}",
            **({"image_imports": ["json"], "image_build_network": "none"} if self.small else {}),
            "image_state_dir": "/var/lib/gb10",
            "image_backup_dir": str(STATE / "kept"),
            **options,
        }
        times: dict[str, float] = {}

        def observe(event: Mapping[str, Any]) -> None:
            if event.get("event") == "playbook_on_task_start":
                name = str(event.get("event_data", {}).get("task", ""))
                times[name] = time.monotonic()

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "play.yml"
            facts = "true" if role == "host" else "false"
            path.write_text(PLAY.format(title=f"{role} {entry}", role=role, entry=entry, facts=facts), encoding="utf-8")
            inventory = [REPO / "molecule" / "shared" / "inventory", STATE / "inventory.yml"]
            result = run_playbook(path, inventory, extra, quiet=True, observer=observe, cancel=cancel)
        if ok is not None and (result.rc == 0) is not ok:
            raise BenchError(f"the play should have {'succeeded' if ok else 'failed'}: {result.describe()}")
        start, end = times.get("Offer the image on the fabric", 0.0), times.get("Close the offer", 0.0)
        return result, max(0.0, end - start)

    def tag(self) -> str:
        """Return the newest image of the benchmark on the head."""
        listed = self.read(
            self.head, "docker image ls --filter label=gb10.image=bench --format '{{.Repository}}:{{.Tag}}'"
        )
        return next(name for name in listed.splitlines() if name.startswith("gb10/bench:") and "refused" not in name)

    def lose(self, *nodes: str) -> None:
        """Remove every image of the benchmark on these nodes, and what is left of one that was being pulled."""
        for node in nodes:
            self.on(
                node,
                # By ID: a digest by which a registry's image was pulled is a name too, and keeps its layers.
                "docker image ls --quiet --filter label=gb10.image | sort -u | xargs -r docker rmi --force;"
                " rm -rf /var/lib/gb10/images; "
                "! docker image ls --quiet --filter label=gb10.image | grep .",
            )

    def layers(self) -> list[dict[str, Any]]:
        """Return ``digest`` and ``size`` of the image's layers in the head's registry."""
        name, _colon, mark = self.tag().rpartition(":")
        link = self.read(self.head, f"cat {REGISTRY}/repositories/{name}/_manifests/tags/{mark}/current/link")
        found: list[dict[str, Any]] = json.loads(self.read(self.head, f"cat {blob(link)}"))["layers"]
        return found

    def same_everywhere(self, tag: str = "") -> bool:
        """Ask each node's Docker Engine for the image's layers and configuration."""
        ask = f"docker image inspect --format '{{{{json .RootFS.Layers}}}} {{{{json .Config}}}}' {tag or self.tag()}"
        return len({self.read(node, ask) for node in self.nodes}) == 1

    def note(self, stage: str, what: str, value: str, bound: str = "", holds: bool = True) -> None:
        line = Line(stage, what, value, bound, holds)
        self.lines.append(line)
        self.keep()
        verdict = f"   {'holds' if holds else 'BROKEN'}: {bound}" if bound else ""
        print(f"{stage:<11} {what:<58} {value:>22}{verdict}", flush=True)

    def keep(self) -> None:
        """Write what was found, together with the stages that an earlier run on this lab has found."""
        done = {line.stage for line in self.lines}
        kept = [line for line in self.earlier if line["stage"] not in done]
        REPORT.write_text(json.dumps(kept + [vars(line) for line in self.lines], indent=1), encoding="utf-8")

    # --- stages ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring up the lab and build the image on the head alone."""
        self.shape(False)
        self.set_seed(1)
        wheels = [sys.executable, "-m", "lab.engine_wheels"]
        if not self.small and subprocess.run(wheels, cwd=REPO, check=False).returncode != 0:
            raise BenchError("python -m lab.engine_wheels failed, see above")
        self.play(role="host")
        self.play(members=[self.head])
        size = int(self.on(self.head, f"docker image inspect --format '{{{{.Size}}}}' {self.tag()}"))
        self.note("image", f"{self.tag()}, unpacked", f"{size / MIB:.0f} MiB")

    def compare(self, stage: str, shaped: bool) -> None:
        """Both ways, one after the other, on the same links."""
        self.shape(shaped)
        self.lose(*self.workers)
        before: dict[str, int] = {}

        def baseline() -> tuple[float, tuple[float, ...]]:
            with self.moved(before):
                seconds = save_and_load(self, self.tag())
            if not self.same_everywhere():
                raise BenchError("docker save | ssh docker load did not bring the image to every worker")
            return seconds, ()

        baseline_s, _received, problem = attempt(baseline, lambda: self.lose(*self.workers), (BenchError,))
        self.lose(*self.workers)
        self.on(self.head, "rm -rf /var/lib/gb10/image-registry")
        after: dict[str, int] = {}
        with self.moved(after):
            _result, seconds = self.play()
        whole = int(self.read(self.head, f"docker image inspect --format '{{{{.Size}}}}' {self.tag()}"))
        packed = sum(layer["size"] for layer in self.layers())
        rate = self.fabric_rate if shaped else "as fast as the host carries"
        self.note(stage, f"fabric: {rate}; unpacked / in the registry", f"{whole / MIB:.0f} / {packed / MIB:.0f} MiB")
        done = f"failed twice: {problem[-160:]}" if problem else f"{baseline_s:.1f} s"
        self.note(stage, "docker save | ssh docker load, workers in parallel", done)
        self.note(stage, "the role, from the push to the last worker", f"{seconds:.1f} s")
        if not problem:
            ratio = baseline_s / seconds
            self.note(stage, "times faster", f"{ratio:.2f}", ">= 2.0" if shaped else "", ratio >= 2.0 or not shaped)
        for name, totals in (("docker save | ssh", {} if problem else before), ("the role", after)):
            if not totals:
                continue
            received = " ".join(f"{totals[worker] / MIB:.0f}" for worker in self.workers)
            self.note(
                stage,
                f"{name}: sent by the head / received by each worker",
                f"{totals['sent'] / MIB:.0f} / {received} MiB",
            )
        same = self.same_everywhere()
        self.note(stage, "the same layers and configuration on every node", str(same), "True", same)

    def last_layer(self) -> None:
        self.set_seed(self.seed + 1)
        totals: dict[str, int] = {}
        with self.moved(totals):
            _result, seconds = self.play()
        layer = self.layers()[-1]["size"]
        self.note("last-layer", "last layer, compressed", f"{layer / MIB:.1f} MiB")
        self.note("last-layer", "on its way", f"{seconds:.1f} s")
        for worker in self.workers:
            ratio = totals[worker] / layer
            self.note("last-layer", f"{worker} received, in last layers", f"{ratio:.3f}", "<= 1.1", ratio <= 1.1)

    def power_cut(self) -> None:
        self.shape(True)
        victim = self.workers[0]
        self.play()
        self.lose(victim)
        total = sum(layer["size"] for layer in self.layers())
        port = "cat /sys/class/net/eth1/statistics/rx_bytes"
        start = int(self.on(victim, port))
        seen = {"received": 0}

        def cut() -> bool:
            """Cut the power at half of the bytes; tell the run to end once that has happened."""
            if seen["received"] >= total / 2:
                return True
            seen["received"] = int(self.on(victim, port)) - start
            if seen["received"] >= total / 2:
                self.lab("kill", victim)
                return True
            return False

        self.play(ok=None, cancel=cut)
        if seen["received"] < total / 2:
            raise BenchError("the image was there before the power could be cut")
        self.lab("boot", victim)
        missing = total - seen["received"]
        before = int(self.on(victim, port))
        self.play()
        again = int(self.on(victim, port)) - before
        self.note(
            "power-cut",
            f"{victim} had received when its power was cut",
            f"{seen['received'] / MIB:.0f} of {total / MIB:.0f} MiB",
        )
        self.note("power-cut", "received afterwards, in what was missing", f"{again / missing:.3f}")
        same = self.same_everywhere()
        self.note("power-cut", "the same layers and configuration on every node", str(same), "True", same)

    def refusals(self) -> None:
        self.shape(False)
        wrong = {
            "name": "wrong-torch",
            "run": ["sed -i s/2.13.0+cpu/2.10.0+cpu/ /opt/vllm/lib/python3.*/site-packages/torch/version.py"],
        }
        totals: dict[str, int] = {}
        with self.moved(totals):
            result, _seconds = self.play(
                ok=False, image_name="wrong", images={"wrong": {"from": "bench", "steps": [wrong]}}
            )
        said = "torch is 2.10.0+cpu, asserted is 2.13.0+cpu" in result.describe()
        most = max(totals[worker] for worker in self.workers)
        self.note("refusals", "torch wrong: refused by name", str(said), "True", said)
        self.note("refusals", "torch wrong: received by any worker", f"{most} bytes", "< 100000", most < 100_000)

        victim = self.workers[1]
        self.lose(victim)
        free = int(self.on(victim, "df --output=avail -B1 /var/lib/docker | tail -1"))
        totals.clear()
        with self.moved(totals):
            result, _seconds = self.play(ok=False, image_reserve_gib=round(free / 2**30, 1))
        words = result.describe()
        said = f"{victim}: gb10/bench:" in words and "too few. No byte was sent" in words
        most = max(totals[worker] for worker in self.workers)
        self.note("refusals", f"disk too small on {victim}: refused by name and shortfall", str(said), "True", said)
        self.note("refusals", "disk too small: received by any worker", f"{most} bytes", "< 100000", most < 100_000)

        largest = max(self.layers(), key=lambda layer: int(layer["size"]))["digest"]
        self.on(self.head, f"printf damaged | dd of={blob(largest)} bs=1 seek=5000 conv=notrunc status=none")
        self.play()
        found = self.read(self.head, f"sha256sum {blob(largest)}").startswith(largest[7:])
        same = self.same_everywhere()
        self.note("refusals", "a layer damaged on the head: pushed anew", str(found), "True", found)
        self.note("refusals", "the same layers and configuration on every node", str(same), "True", same)

    def restore(self) -> None:
        self.shape(False)
        victim, tag = self.workers[2], self.tag()
        _result, _seconds = self.play("backup", image_tag=tag)
        before = self.on(self.workers[0], f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {tag}")
        built = self.on(self.head, "stat --format %Y /var/log/gb10/build-bench.log")
        kept = sum(path.stat().st_size for path in (STATE / "kept").glob("*.tar"))
        self.note("restore", "kept on the control node", f"{kept / MIB:.0f} MiB")
        self.lose(self.head, victim)
        self.on(self.head, "rm -rf /var/lib/gb10/image-registry")
        start = time.monotonic()
        self.play("restore", image_tag=tag)
        self.note("restore", f"back on {self.head} and {victim}", f"{time.monotonic() - start:.0f} s")
        ask = f"docker image inspect --format '{{{{json .RootFS.Layers}}}}' {tag}"
        same = {self.on(node, ask) for node in self.nodes} == {before}
        self.note("restore", "the same layers as before on every node", str(same), "True", same)
        quiet = built == self.on(self.head, "stat --format %Y /var/log/gb10/build-bench.log")
        self.note("restore", "no build", str(quiet), "True", quiet)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {','.join(STAGES)}, or none")
    parser.add_argument("--fabric-rate", default="100mbit", help="of the shaped stages")
    parser.add_argument("--nodes", type=int, default=len(NODES), help="of the lab, 2 to 4; power-cut to restore want 4")
    parser.add_argument("--image", choices=["engine", "small"], default="engine", help="what is distributed")
    parser.add_argument("--reuse", action="store_true", help="the lab and its image are there from a run with --keep")
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    args = parser.parse_args(argv)
    stages = [stage for stage in args.stages.split(",") if stage and stage != "none"]
    unknown = sorted(set(stages) - set(STAGES))
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; known are {', '.join(STAGES)}")
    os.chdir(REPO)
    bench = Bench(args.fabric_rate, NODES[: args.nodes], args.image == "small")
    if args.reuse and REPORT.exists():
        bench.earlier = json.loads(REPORT.read_text(encoding="utf-8"))
    steps: dict[str, Callable[[], None]] = {
        "unshaped": lambda: bench.compare("unshaped", False),
        "shaped": lambda: bench.compare("shaped", True),
        "last-layer": bench.last_layer,
        "power-cut": bench.power_cut,
        "refusals": bench.refusals,
        "restore": bench.restore,
    }
    try:
        if not args.reuse:
            bench.prepare()
        for stage in STAGES:
            if stage in stages and stage in steps:
                steps[stage]()
        if stores := [stage for stage in stages if stage not in steps]:
            Rivals(bench, (BenchError,)).run(stores)
    except BenchError as problem:
        print(f"bench-image stopped: {problem}", file=sys.stderr)
        return 1
    finally:
        if not args.keep:
            bench.lab("down")
    return 0 if all(line.holds for line in bench.lines) else 1


if __name__ == "__main__":
    sys.exit(main())
