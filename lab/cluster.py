# SPDX-License-Identifier: Apache-2.0
"""A lab as Docker objects: create, start, shape, cut, kill, read, remove."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import docker.errors
import docker.types

from lab import access, capabilities, console, daemon, probe, settings
from lab.errors import LabError
from lab.locks import locked
from lab.networks import Networks
from lab.plan import (
    LABEL_CONFIG,
    LABEL_LAB,
    LABEL_NODE,
    LABEL_OWNER,
    MAX_NODES,
    NETS,
    Net,
    NodePlan,
    container_name,
    in_use,
    network_name,
    plan_nodes,
    volume_names,
)
from lab.progress import Progress
from lab.rootfs import PACKAGES_IN_NODE, Cache, Prepared, key_of
from lab.settings import Settings
from lab.shaping import HostLink, Rates, format_rate, host_script, qdisc_command
from lab.status import NodeReport
from lab.waiting import wait_until

_STATE_FILES = (
    settings.FILE,
    "id_ed25519",
    "id_ed25519.pub",
    "known_hosts",
    "ssh_config",
    "hosts.json",
    "inventory.yml",
)
#: A node that boots, and whose console and SSH say nothing new for so long, hangs.
_BOOT_STALL_SECONDS = 300.0
_T = TypeVar("_T")
_R = TypeVar("_R")


def _side_by_side(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    with ThreadPoolExecutor(max_workers=MAX_NODES) as pool:
        return list(pool.map(work, items))


class Cluster:
    """The lab called ``name`` whose files are in ``root``/<name>.

    client: of the host's Docker Engine. root: the ``.lab`` directory.
    """

    def __init__(self, client: Any, root: Path, name: str, progress: Progress) -> None:
        self._client = client
        self._root = root
        self.name = name
        self.state = root / name
        self._progress = progress
        self._networks = Networks(client, root, name, self._labels())

    def lock(self) -> AbstractContextManager[None]:
        """Hold off other commands on this lab while the context lasts."""
        return locked(self._root / "cache" / f"{self.name}.lock")

    # Reading -------------------------------------------------------------------------------

    def containers(self) -> dict[int, Any]:
        """Return {node number: container} of what exists of this lab, running or not."""
        found = self._client.containers.list(
            all=True, filters={"label": [f"{LABEL_LAB}={self.name}", LABEL_NODE]}, ignore_removed=True
        )
        return {int(container.labels[LABEL_NODE]): container for container in found}

    def loaded(self) -> Settings:
        """Return the lab's settings; raise LabError when it is not up."""
        kept = settings.load(self.state)
        if kept is None:
            raise LabError(
                f"There is no lab {self.name!r} here ({self.state} has no {settings.FILE}): start "
                "it with `python -m lab up`."
            )
        return kept

    def nodes(self) -> list[NodePlan]:
        """Return the planned nodes of the lab as it was brought up."""
        kept = self.loaded()
        return plan_nodes(self.name, kept.nodes, kept.subnets)

    def reports(self) -> list[NodeReport]:
        """Return what is known of every node, read over the console of those that run."""
        kept = self.loaded()
        containers = self.containers()

        def report(node: NodePlan) -> NodeReport:
            container = containers.get(node.index)
            power = "missing" if container is None else str(container.status)
            state, silence = None, ""
            if container is not None and power == "running":
                try:
                    state = self._probe(container, node)
                except LabError as error:
                    silence = str(error)
            cut = tuple(net for net in NETS if kept.is_cut(node.host, net))
            return NodeReport(node, power, state, cut, kept.rates, silence)

        return _side_by_side(report, plan_nodes(self.name, kept.nodes, kept.subnets))

    # Bringing up ---------------------------------------------------------------------------

    def admit(self, count: int | None, uplink: bool | None) -> int:
        """Return how many nodes `up` means; raise LabError for all that is known to fail beforehand.

        count: number of nodes, or None for as many as there are (4 for a new lab). uplink: whether
        nodes shall have a way out, None for as before.
        """
        self._clear_of_others()
        containers = self.containers()
        kept = settings.load(self.state)
        wanted = count or max([*containers, kept.nodes if kept else 0]) or 4
        beyond = [container_name(self.name, k) for k in sorted(containers) if k > wanted]
        if beyond:
            raise LabError(
                f"Lab {self.name!r} already has {', '.join(beyond)}, and {wanted} nodes were asked "
                "for; `up` never removes a node. Ask for that many, or run `python -m lab down` first."
            )
        mgmt = self._networks.existing().get("mgmt")
        if mgmt is not None and uplink is not None and uplink == mgmt.attrs["Internal"]:
            raise LabError(
                f"Lab {self.name!r} runs {'without' if uplink else 'with'} a way out, and that cannot "
                "be changed while it exists: run `python -m lab down` first."
            )
        return wanted

    def up(
        self,
        count: int,
        rates: Callable[[Rates | None], Rates],
        uplink: bool | None,
        cache: Cache,
        shm_gib: int,
    ) -> list[NodePlan]:
        """Bring the lab to the wanted state and return its nodes; touch nothing that fits already.

        count: number of nodes, from :meth:`admit`. rates: from those of before to those wanted.
        uplink: whether nodes have a way out, None for as before. shm_gib: size of /dev/shm, GiB.
        """
        containers = self.containers()
        kept = settings.load(self.state)
        for index, container in list(containers.items()):
            if container.status == "created" and len(container.attrs["NetworkSettings"]["Networks"]) < len(NETS):
                container.remove(force=True)  # what an interrupted `up` left half-made
                del containers[index]
        missing = [k for k in range(1, count + 1) if k not in containers]
        prepared = cache.prepare() if missing else cache.plan()
        subnets, uplink = self._networks.ensure(uplink, bool(kept and kept.uplink))
        wanted = Settings(
            name=self.name,
            nodes=count,
            subnets=subnets,
            rates=rates(kept.rates if kept else None),
            uplink=uplink,
            base_image=cache.base_image,
            with_docker=cache.with_docker,
            cut={} if kept is None else kept.cut,
        )
        self.state.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o700)
        settings.save(wanted, self.state)
        nodes = plan_nodes(self.name, count, subnets)
        if missing:
            granted = capabilities.for_node(daemon.held_capabilities())
            with self._progress.step(f"Create {len(missing)} node(s)"):
                for index in missing:
                    self._create(nodes[index - 1], wanted, prepared, granted, shm_gib)
                containers = self.containers()
        stale = [
            container.name
            for container in containers.values()
            if container.labels.get(LABEL_CONFIG) != self._config(wanted, prepared)
        ]
        if stale:
            self._progress.say(
                f"{', '.join(sorted(stale))}: made from other inputs than today's and left as they "
                "are; `python -m lab down` and `up` renews them."
            )
        self._start(wanted, nodes, containers)
        return nodes

    def boot(self, node: NodePlan) -> None:
        """Power a node on and wait until SSH answers."""
        self._start(self.loaded(), [node], self.containers(), all_nodes=False)

    def kill(self, node: NodePlan) -> None:
        """Power a node off the hard way: SIGKILL for everything in it."""
        container = self._existing(node)
        if container.status == "running":
            container.kill("SIGKILL")
            container.wait()

    def set_links(self, node: NodePlan, nets: tuple[Net, ...], cut: bool) -> None:
        """Pull or plug in a node's cables; takes effect at once when the node runs."""
        container = self._existing(node)
        wanted = self.loaded().with_links(node.host, nets, cut)
        settings.save(wanted, self.state)
        if container.status == "running":
            self._shape(wanted, [(node, container)])

    def down(self, force: bool) -> list[str]:
        """Remove all that carries this lab's label and its files; return what was removed."""
        if not force:
            self._clear_of_others()
        return self._remove_all()

    def _remove_all(self) -> list[str]:
        removed: list[str] = []
        selector = {"label": f"{LABEL_LAB}={self.name}"}
        found = self._client.containers.list(all=True, filters=selector, ignore_removed=True)
        _side_by_side(lambda container: container.remove(force=True, v=True), found)
        removed += sorted(container.name for container in found)
        for network in self._client.networks.list(filters=selector):
            network.remove()
            removed.append(network.name)
        for volume in self._client.volumes.list(filters=selector):
            volume.remove(force=True)
            removed.append(volume.name)
        for file in _STATE_FILES:
            (self.state / file).unlink(missing_ok=True)
        if self.state.is_dir() and not any(self.state.iterdir()):
            self.state.rmdir()
        return removed

    # Parts ---------------------------------------------------------------------------------

    def _owner(self) -> str:
        return str(self._root.resolve())

    def _clear_of_others(self) -> None:
        """Remove what another clone left of a lab of this name; raise LabError when its lab is in use."""
        containers = list(self.containers().values())
        owners = {container.labels.get(LABEL_OWNER, "") for container in containers}
        owners |= {network.attrs["Labels"].get(LABEL_OWNER, "") for network in self._networks.existing().values()}
        others = sorted(owners - {self._owner()})
        if not others:
            return
        who = ", ".join(owner or "elsewhere" for owner in others)
        if in_use([container.status for container in containers], others):
            raise LabError(
                f"A lab {self.name!r} that was started from {who} already runs on this host. Take it down there, or "
                "with `python -m lab down --force` here, or give this one another --name."
            )
        self._progress.say(f"Remove what is left of a lab {self.name!r} that was started from {who}; none of it runs.")
        self._remove_all()

    def _labels(self, **more: str) -> dict[str, str]:
        return {LABEL_LAB: self.name, LABEL_OWNER: self._owner(), **more}

    def _config(self, wanted: Settings, prepared: Prepared) -> str:
        return key_of(prepared.image, str(prepared.packages), wanted.uplink)

    def _existing(self, node: NodePlan) -> Any:
        container = self.containers().get(node.index)
        if container is None:
            raise LabError(f"Node {node.host} of lab {self.name!r} does not exist; `python -m lab up` makes it.")
        return container

    def _create(
        self,
        node: NodePlan,
        wanted: Settings,
        prepared: Prepared,
        granted: Sequence[str],
        shm_gib: int,
    ) -> None:
        api = self._client.api
        volumes = volume_names(self.name, node.index)
        for volume in volumes.values():
            self._client.volumes.create(volume, labels=self._labels())
        host_config = api.create_host_config(
            binds={
                **{volume: {"bind": target, "mode": "rw"} for target, volume in volumes.items()},
                str(prepared.packages.resolve()): {"bind": PACKAGES_IN_NODE, "mode": "ro"},
            },
            cap_drop=["ALL"],
            cap_add=list(granted),
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="private",
            tmpfs={
                "/run": "exec,mode=755",
                "/run/lock": "mode=1777",
                "/tmp": "exec,mode=1777",
            },
            shm_size=f"{shm_gib}g",
            network_mode=network_name(self.name, "mgmt"),
            log_config=docker.types.LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
        )
        endpoint = api.create_endpoint_config(ipv4_address=str(node.mgmt))
        try:
            made = api.create_container(
                prepared.image,
                name=node.container,
                hostname=node.host,
                host_config=host_config,
                networking_config=api.create_networking_config({network_name(self.name, "mgmt"): endpoint}),
                labels=self._labels(
                    **{
                        LABEL_NODE: str(node.index),
                        LABEL_CONFIG: self._config(wanted, prepared),
                    }
                ),
                environment={
                    "container": "docker",
                    "GB10_LAB_UPLINK": "yes" if wanted.uplink else "no",
                    "GB10_LAB_MGMT": str(node.mgmt),
                    "GB10_LAB_FABRIC": str(node.fabric),
                    "GB10_LAB_GATEWAY": str(wanted.subnets.mgmt.network_address + 1),
                },
                stop_signal="SIGRTMIN+3",
            )
        except docker.errors.APIError as error:
            raise LabError(f"The container {node.container} could not be made: {error.explanation or error}") from error
        try:
            api.connect_container_to_network(
                made["Id"], network_name(self.name, "fabric"), ipv4_address=str(node.fabric)
            )
        except docker.errors.APIError as error:
            api.remove_container(made["Id"], force=True)
            raise LabError(
                f"{node.container} could not be connected to {network_name(self.name, 'fabric')}: "
                f"{error.explanation or error}"
            ) from error

    def _start(
        self, wanted: Settings, nodes: Sequence[NodePlan], containers: dict[int, Any], all_nodes: bool = True
    ) -> None:
        """Start what does not run, shape all links, exchange keys, wait for SSH."""
        pairs = []
        for node in nodes:
            if node.index not in containers:
                self._existing(node)
            pairs.append((node, containers[node.index]))

        def start(pair: tuple[NodePlan, Any]) -> bool:
            node, container = pair
            if container.status == "running":
                return False
            try:
                container.start()
            except docker.errors.APIError as error:
                raise LabError(f"Node {node.host} could not be started: {error.explanation or error}") from error
            return True

        with self._progress.step(f"Start and shape {len(pairs)} node(s)"):
            _side_by_side(start, pairs)
            self._shape(wanted, pairs)
        with self._progress.step("Wait for SSH with verified host keys"):
            public_key = self._own_key()
            states = _side_by_side(lambda pair: self._welcome(*pair, public_key), pairs)
            keys = {node.host: state.host_keys for (node, _unused), state in zip(pairs, states, strict=True)}
            self._write_access(wanted, keys, all_nodes)
            _side_by_side(lambda pair: self._await_ssh(wanted, *pair), pairs)

    def _own_key(self) -> str:
        private = self.state / "id_ed25519"
        public = private.with_suffix(".pub")
        if not (private.exists() and public.exists()):
            for file in (private, public):
                file.unlink(missing_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"gb10-lab-{self.name}", "-f", str(private)],
                check=True,
            )
        return public.read_text(encoding="utf-8").strip()

    def _probe(self, container: Any, node: NodePlan) -> probe.NodeState:
        return probe.parse(console.run(container, probe.SCRIPT), {"mgmt": node.mgmt, "fabric": node.fabric})

    def _shape(self, wanted: Settings, pairs: Sequence[tuple[NodePlan, Any]]) -> None:
        """Give every link of these running nodes its rate, both ways, and its carrier."""

        def inside(pair: tuple[NodePlan, Any]) -> list[HostLink]:
            node, container = pair
            console.run(container, console.AWAIT_INIT)
            state = self._probe(container, node)
            absent = [net for net in NETS if net not in state.links]
            if absent:
                raise LabError(f"Node {node.host} has no interface with its address on {', '.join(absent)}.")
            script = "\n".join(qdisc_command(state.links[net].device, net, wanted.rates.of(net)) for net in NETS)
            console.run(container, f"set -e\n{script}\n")
            return [
                HostLink(
                    ifindex=state.links[net].peer_ifindex,
                    net=net,
                    bits_per_s=wanted.rates.of(net),
                    cut=wanted.is_cut(node.host, net),
                )
                for net in NETS
            ]

        links = [link for part in _side_by_side(inside, pairs) for link in part]
        try:
            self._client.containers.run(
                pairs[0][1].image.id,
                command=["sh", "-c", host_script(links)],
                network_mode="host",
                cap_add=["NET_ADMIN"],
                labels=self._labels(),
                remove=True,
            )
        except docker.errors.ContainerError as error:
            raw = error.stderr or b""
            said = (raw.decode(errors="replace") if isinstance(raw, bytes) else raw).strip()
            raise LabError(
                f"The host's ends of the lab's links could not be set: {said}. The kernel needs the "
                "tbf packet scheduler (module sch_tbf); `--unshaped` does without."
            ) from error

    def _welcome(self, node: NodePlan, container: Any, public_key: str) -> probe.NodeState:
        """Put the lab's public key on a node and return its state, once it has host keys."""
        state = wait_until(
            lambda: found if (found := self._probe(container, node)).host_keys else None,
            lambda: container.logs(tail=8),
            lambda _none: f"Node {node.host} made no host keys.",
            stall_seconds=_BOOT_STALL_SECONDS,
        )
        assert state is not None
        console.run(
            container,
            f"install -d -m 700 -o {access.USER} -g {access.USER} /home/{access.USER}/.ssh\n"
            f"cd /home/{access.USER}/.ssh && touch authorized_keys\n"
            'grep -qxF "$KEY" authorized_keys || echo "$KEY" >> authorized_keys\n'
            f"chown {access.USER}:{access.USER} authorized_keys && chmod 600 authorized_keys\n",
            KEY=public_key,
        )
        return state

    def _write_access(self, wanted: Settings, keys: dict[str, tuple[str, ...]], all_nodes: bool) -> None:
        """Write known_hosts, ssh_config, hosts.json and the inventory."""
        nodes = plan_nodes(self.name, wanted.nodes, wanted.subnets)
        path = self.state / "known_hosts"
        lines = access.known_hosts(nodes, keys).splitlines(keepends=True)
        if not all_nodes and path.exists():
            before = path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines += [line for line in before if line.partition(",")[0] not in keys]
        access.write(path, "".join(sorted(lines)))
        state = self.state.resolve()
        access.write(self.state / "ssh_config", access.ssh_config(nodes, state))
        access.write(self.state / "hosts.json", access.hosts_json(self.name, nodes, state))
        access.write(self.state / "inventory.yml", access.inventory(nodes, state))

    def _await_ssh(self, wanted: Settings, node: NodePlan, container: Any) -> None:
        if wanted.is_cut(node.host, "mgmt"):
            self._progress.say(f"{node.host}: its management link is cut, so SSH was not tried")
            return
        said = [""]

        def answers() -> bool:
            done = subprocess.run(
                ["ssh", "-F", str(self.state / "ssh_config"), "-o", "BatchMode=yes", node.host, "sudo", "-n", "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            said[0] = done.stderr.strip()
            return done.returncode == 0

        def shown() -> str:
            return str(container.logs(tail=8).decode(errors="replace"))

        wait_until(
            answers,
            lambda: (said[0], shown()),
            lambda _no: f"Node {node.host} does not answer SSH at {node.mgmt}: {said[0]}\nIts console ends:\n{shown()}",
            stall_seconds=_BOOT_STALL_SECONDS,
        )

    def describe(self) -> str:
        """Return one line on the lab's links."""
        rates = self.loaded().rates
        return f"mgmt {format_rate(rates.mgmt_bits_per_s)}, fabric {format_rate(rates.fabric_bits_per_s)}"
