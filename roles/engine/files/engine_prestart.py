# SPDX-License-Identifier: Apache-2.0
"""What must be fresh at every start of an engine unit, on this node, before its container runs.

Reads the node's launch description (JSON, written by the engine role), removes a stale container by its exact name,
resolves the fabric's interface and HCAs, frees the page cache, and refuses the start, in one sentence, when this node
cannot carry the engine.  Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class RefusedError(Exception):
    """This node cannot carry the engine; the message says why and what to do."""


def interface_of(address: str, listing: Iterable[dict[str, Any]]) -> str:
    """Return the interface that holds an address, from ``ip -json address``.

    :raises RefusedError: when none does, naming those that are there.
    """
    seen = []
    for link in listing:
        for entry in link.get("addr_info", []):
            if entry.get("local") == address:
                if link.get("operstate") == "DOWN" or "NO-CARRIER" in link.get("flags", []):
                    raise RefusedError(
                        f"{link['ifname']} holds the fabric address {address} but has no carrier; check the cable"
                    )
                return str(link["ifname"])
            seen.append(f"{link.get('ifname')} {entry.get('local')}")
    raise RefusedError(
        f"no interface holds the fabric address {address}; there are {', '.join(seen)}. Run playbooks/fabric.yml"
    )


def active_hcas(root: Path = Path("/sys/class/infiniband")) -> list[str]:
    """Return the HCAs with an active port, sorted, as sysfs shows them now."""
    found = []
    for device in sorted(root.iterdir()) if root.is_dir() else []:
        for state in device.glob("ports/*/state"):
            if "ACTIVE" in state.read_text(encoding="ascii", errors="replace"):
                found.append(device.name)
                break
    return found


def network_environment(address: str, interface: str, hcas: list[str]) -> dict[str, str]:
    """Return the variables that name this node's network to vLLM, NCCL, Gloo and UCX.

    NCCL_IB_GID_INDEX is left unset: an index drifts in time and differs between nodes [P].
    """
    env = {
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
    }
    if hcas:
        env["NCCL_IB_HCA"] = ",".join(hcas)
        env["UCX_NET_DEVICES"] = ",".join([*(f"{hca}:1" for hca in hcas), interface])
    return env


def listeners(text: str) -> dict[int, str]:
    """Return port → process from the output of ``ss -Hltnp``."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        port = fields[3].rsplit(":", 1)[-1]
        holder = re.search(r'users:\(\("([^"]+)",pid=(\d+)', line)
        if port.isdigit():
            found[int(port)] = f"{holder.group(1)} (pid {holder.group(2)})" if holder else "a process"
    return found


def meminfo_gib(text: str, key: str) -> float:
    """Return one entry of /proc/meminfo in GiB."""
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) / 2**20 if match else 0.0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def prepare(launch: dict[str, Any]) -> dict[str, str]:
    """Make this node ready and return the environment of its network.

    :raises RefusedError: when the start must not happen.
    """
    name = launch["container"]
    if run("docker", "container", "inspect", name).returncode == 0:
        run("docker", "rm", "--force", name)
    if run("docker", "image", "inspect", launch["image"]).returncode:
        raise RefusedError(f"image {launch['image']} is not on this node; run playbooks/image.yml")
    stamp = Path(launch["weights"]) / ".gb10-manifest.json"
    if not stamp.is_file():
        raise RefusedError(
            f"the weights in {launch['weights']} are not whole ({stamp.name} is missing); run playbooks/weights.yml"
        )
    taken = listeners(run("ss", "-Hltnp").stdout)
    for port in launch["ports"]:
        if port in taken:
            raise RefusedError(f"port {port} is held by {taken[port]}; stop it, or change model_spec.ports")
    interface = interface_of(launch["address"], json.loads(run("ip", "-json", "address").stdout or "[]"))
    hcas = active_hcas()
    if launch["require_rdma"] and not hcas:
        raise RefusedError(
            "no HCA is active in /sys/class/infiniband; without RDMA NCCL falls back to TCP. Run playbooks/doctor.yml"
        )
    if launch["drop_caches"]:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    available = meminfo_gib(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable")
    needed = launch["memory_needed_gib"]
    if available < needed:
        raise RefusedError(
            f"MemAvailable is {available:.1f} GiB and the engine needs {needed:.1f} GiB on this node: "
            f"{needed - available:.1f} GiB short. What holds memory: ps -eo rss,comm --sort=-rss | head"
        )
    return network_environment(launch["address"], interface, hcas)


def main() -> None:
    """Prepare the start that the given launch description asks for."""
    launch = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        env = prepare(launch)
    except RefusedError as refusal:
        print(f"gb10: start refused: {refusal}", flush=True)
        sys.exit(78)
    target = Path(launch["network_env"])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text("".join(f"{key}={value}\n" for key, value in sorted(env.items())), encoding="utf-8")
    temporary.replace(target)
    print(f"gb10: {launch['container']} starts as rank {launch['rank']} on {env['GLOO_SOCKET_IFNAME']}", flush=True)


if __name__ == "__main__":
    main()
