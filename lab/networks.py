# SPDX-License-Identifier: Apache-2.0
"""The two Docker networks of a lab, and subnets that collide with nothing else on the host."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import docker.errors
import docker.types

from lab.errors import LabError
from lab.locks import locked
from lab.plan import LABEL_LAB, LABEL_NET, NETS, Net, SubnetPair, choose_subnets, network_name

FABRIC_MTU = 9000


class Networks:
    """The networks of the lab called ``name``; those that are made carry ``labels``.

    client: of the host's Docker Engine. root: the ``.lab`` directory.
    """

    def __init__(self, client: Any, root: Path, name: str, labels: dict[str, str]) -> None:
        self._client = client
        self._root = root
        self._name = name
        self._labels = labels

    def existing(self) -> dict[Net, Any]:
        """Return {network: Docker network} of what exists of this lab."""
        found = self._client.networks.list(filters={"label": f"{LABEL_LAB}={self._name}"})
        by_net = {network.attrs["Labels"].get(LABEL_NET): network for network in found}
        return {net: by_net[net] for net in NETS if net in by_net}

    def ensure(self, uplink: bool | None, before: bool) -> tuple[SubnetPair, bool]:
        """Return the subnets and whether there is a way out, creating the networks if missing.

        uplink: whether nodes shall have a way out, None for as ``before``.
        """
        with locked(self._root / "cache" / "subnets.lock"):
            existing = self.existing()
            if "mgmt" in existing:
                uplink = not existing["mgmt"].attrs["Internal"]
            wanted_uplink = bool(uplink if uplink is not None else before)
            found = {
                net: IPv4Network(network.attrs["IPAM"]["Config"][0]["Subnet"]) for net, network in existing.items()
            }
            if len(found) == len(NETS):
                return SubnetPair(found["mgmt"], found["fabric"]), wanted_uplink
            for network in existing.values():  # half a lab: only what was interrupted has one
                network.remove()
            pair = choose_subnets(self._name, self._taken())
            for net in NETS:
                self._create(net, pair, wanted_uplink)
            return pair, wanted_uplink

    def _taken(self) -> list[IPv4Network]:
        taken = [
            IPv4Network(config["Subnet"])
            for network in self._client.networks.list()
            for config in network.attrs.get("IPAM", {}).get("Config") or []
            if ":" not in config.get("Subnet", ":")
        ]
        routes = Path("/proc/net/route")
        if routes.exists():
            taken += parse_routes(routes.read_text(encoding="ascii"))
        return taken

    def _create(self, net: Net, pair: SubnetPair, uplink: bool) -> None:
        subnet = pair.of(net)
        options = {"com.docker.network.driver.mtu": str(FABRIC_MTU if net == "fabric" else 1500)}
        if net == "fabric":
            # As in reality, the control node is not on the fabric.
            options["com.docker.network.bridge.inhibit_ipv4"] = "true"
        try:
            self._client.networks.create(
                network_name(self._name, net),
                driver="bridge",
                internal=net == "fabric" or not uplink,
                options=options,
                ipam=docker.types.IPAMConfig(
                    pool_configs=[docker.types.IPAMPool(subnet=str(subnet), gateway=str(subnet.network_address + 1))]
                ),
                labels={**self._labels, LABEL_NET: net},
                check_duplicate=True,
            )
        except docker.errors.APIError as error:
            name = network_name(self._name, net)
            raise LabError(f"Cannot create the network {name} ({subnet}): {error.explanation or error}") from error


def parse_routes(text: str) -> list[IPv4Network]:
    """Return the networks that /proc/net/route lists (addresses there are little-endian hex)."""
    networks = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1]) for i in (1, 7))
        networks.append(IPv4Network((address & mask, bin(mask).count("1"))))
    return networks
