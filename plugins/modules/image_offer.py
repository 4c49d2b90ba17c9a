#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_offer
short_description: Offer an image to the other nodes while it is distributed
version_added: 0.1.0
description:
  - Pushes an image into the storage of this node's packaged registry (C(docker-registry)), where only changed layers
    are added, and runs the registry as a transient systemd unit, read-only, on one address.
  - Only who has the certificate of this distribution may pull; it is made anew each time.
  - What the storage holds is verified first; a damaged layer is removed and pushed anew.
  - With O(state=absent) the unit is stopped and the certificates are removed, also on a node that pulled; the layers
    are kept for the next run.
options:
  state:
    description: V(present) stores and offers, V(stored) only stores, V(absent) stops the offer.
    type: str
    choices: [present, stored, absent]
    default: present
  tag:
    description: The image. Not needed with O(state=absent).
    type: str
    required: false
  node:
    description: The node's name, for messages.
    type: str
    default: this node
  address:
    description: The address to listen on, one of the fabric.
    type: str
  port:
    description: The port to listen on; while the image is pushed, on the loopback alone.
    type: int
  program:
    description: >-
      The program V(image) on this node, as M(gb10.cluster.program) installs it. Not needed with O(state=absent).
    type: path
extends_documentation_fragment:
  - gb10.cluster.attributes.no_diff
  - gb10.cluster.image.node
  - gb10.cluster.image.room
attributes:
  idempotent:
    details:
      - The unit is transient and the storage a cache; neither counts as a change.
"""

EXAMPLES = r"""
- name: Offer the image on the fabric
  gb10.cluster.image_offer:
    tag: gb10/vllm-node:0123456789ab
    program: "{{ lookup('gb10.cluster.program', 'image') }}"
    address: 192.168.100.1
    port: 5080
"""

RETURN = r"""
source:
  description: What to pull, C(address:port/name@digest).
  returned: with O(state=present)
  type: str
certificates:
  description: Directory of the certificates on this node.
  returned: with O(state=present)
  type: str
layers:
  description: >-
    C(diff_id) and C(bytes) unpacked, C(digest) and C(file_bytes) in the registry of each layer, from the base up.
  returned: when the image was stored
  type: list
  elements: dict
seconds:
  description: Seconds that it took to bring the image into the storage.
  returned: when the image was stored
  type: float
"""

import contextlib
import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import certificates, records, registry
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import GIB
from ansible_collections.gb10.cluster.plugins.module_utils._image.room import no_room
from ansible_collections.gb10.cluster.plugins.module_utils._model.image_recipe import identity

SERVICE = f"{records.OFFER_UNIT}.service"
#: The account that the package brings.
ACCOUNT = "docker-registry"
#: Exit statuses of `systemctl is-active` for a unit that has ended, or is gone; any other says nothing of it.
NOT_ACTIVE = (3, 4)


def listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def serve(module: AnsibleModule, storage: Path, address: str, more: dict[str, Any]) -> None:
    """Start the registry and wait until it answers, for as long as its unit runs."""
    want = module.params
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "maintenance": {"readonly": {"enabled": bool(more)}},
        },
        "http": {"addr": f"{address}:{want['port']}", **more},
    }
    path = certificates.RUN / "registry.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    module.run_command(["systemctl", "reset-failed", SERVICE])
    limits = [f"User={ACCOUNT}", "Nice=5", "NoNewPrivileges=yes", "ProtectSystem=strict", f"ReadWritePaths={storage}"]
    service = ["systemd-run", "--quiet", "--collect", "--unit", records.OFFER_UNIT]
    words = [*service, *(f"--property={limit}" for limit in limits), "python3", want["program"], "image", "serve"]
    module.run_command([*words, "--config", str(path), "--port", str(want["port"])], check_rc=True)
    while True:
        # Liveness first: a unit that ends after this look has not been waiting for its port.
        running = module.run_command(["systemctl", "is-active", "--quiet", SERVICE])[0] not in NOT_ACTIVE
        if listens(address, want["port"]):
            return
        if not running:
            break
        time.sleep(0.1)
    _code, out, _err = module.run_command(["journalctl", "-u", records.OFFER_UNIT, "-n", "15", "--no-pager"])
    module.fail_json(
        msg=f"The image is not offered at {address}:{want['port']}; the unit's journal: {out.strip()[-1500:]}"
    )


def stop(module: AnsibleModule) -> None:
    """Stop the registry and forget every certificate, those that this node was given as well."""
    module.run_command(["systemctl", "stop", SERVICE])
    for folder in (certificates.RUN, *certificates.accepted()):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there, or the owner's registries are in it
        certificates.ENGINE.rmdir()


def layer_bytes(module: AnsibleModule, tag: str, image: registry.Held) -> list[int]:
    """Return how many bytes each layer takes unpacked: by Docker's history, or four times as it is compressed."""
    _code, out, _err = module.run_command(["docker", "history", "--human=false", "--format", "{{.Size}}", tag])
    sizes = [int(line) if line.isdigit() else 0 for line in reversed(out.split())]
    steps = json.loads(image.config).get("history") or []
    if len(sizes) == len(steps):
        sizes = [size for size, step in zip(sizes, steps, strict=True) if not step.get("empty_layer")]
    if len(sizes) != len(image.blobs):
        return [4 * blob.bytes for blob in image.blobs]
    return [max(size, blob.bytes) for size, blob in zip(sizes, image.blobs, strict=True)]


def push(module: AnsibleModule, storage: Path, size: int) -> None:
    """Push the image over the loopback, which needs no certificate, when it fits the disk."""
    want = module.params
    disks = [(str(storage), size, shutil.disk_usage(storage).free)]
    if problems := no_room(want["node"], want["tag"], disks, int(want["reserve_gib"] * GIB)):
        module.fail_json(msg="\n".join(problems))
    serve(module, storage, "127.0.0.1", {})
    remote = f"127.0.0.1:{want['port']}/{want['tag']}"
    module.run_command(["docker", "tag", want["tag"], remote], check_rc=True)
    code, _out, err = module.run_command(["docker", "push", "--quiet", remote])
    module.run_command(["docker", "rmi", remote])
    module.run_command(["systemctl", "stop", SERVICE])
    if code != 0:
        module.fail_json(msg=f"{want['tag']} cannot be offered: docker push: {err.strip()[-2000:]}")


def store(module: AnsibleModule, storage: Path) -> registry.Held:
    """Bring the image into the storage, or verify that it is there."""
    want = module.params
    code, out, _err = module.run_command(["docker", "image", "inspect", want["tag"]])
    if code != 0:
        module.fail_json(
            msg=f"{want['tag']} is not in the Docker Engine of {want['node']}: build it, or restore it from its backup."
        )
    inspected = json.loads(out)[0]
    storage.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.chown(storage, ACCOUNT, ACCOUNT)
    for digest in registry.remove_damaged(storage):
        module.warn(f"{digest[:19]} was damaged in the registry of {want['node']}; it is pushed anew.")
    for pushed in (False, True):
        found = registry.read(storage, want["tag"])
        if found is not None and found.identity == identity(inspected):
            return found
        if not pushed:
            # What is there already is not known before; the image as it is unpacked is the most that comes.
            push(module, storage, int(inspected.get("Size", 0)))
    module.fail_json(msg=f"{storage} does not hold {want['tag']} after a push. Remove the directory and run again.")
    raise SystemExit(1)


def offer(module: AnsibleModule, storage: Path) -> None:
    """Open the registry to who has the certificate of this distribution."""
    folder = certificates.RUN
    for command in certificates.prepare(folder, module.params["address"]):
        module.run_command(command, check_rc=True)
    (folder / "ca.key").unlink()
    folder.chmod(0o750)
    for path in (folder, folder / "server.key"):
        shutil.chown(path, group=ACCOUNT)
    (folder / "server.key").chmod(0o640)
    tls = {"certificate": str(folder / "server.crt"), "key": str(folder / "server.key")}
    serve(
        module,
        storage,
        module.params["address"],
        {"tls": {**tls, "clientcas": [str(folder / "ca.crt")], "minimumtls": "tls1.2"}},
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "stored", "absent"], "default": "present"},
            "tag": {"type": "str"},
            "node": {"type": "str", "default": "this node"},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
            "address": {"type": "str"},
            "port": {"type": "int"},
            "reserve_gib": {"type": "float", "default": 0},
            "program": {"type": "path"},
        },
        required_if=[
            ("state", "present", ["tag", "address", "port", "program"]),
            ("state", "stored", ["tag", "port", "program"]),
        ],
        supports_check_mode=True,
    )
    want = module.params
    storage = Path(want["state_dir"]) / records.REGISTRY
    result: dict[str, Any] = {"changed": False, "layers": [], "source": "", "certificates": str(certificates.RUN)}
    if module.check_mode:
        module.exit_json(**result)
    stop(module)
    if want["state"] != "absent":
        if module.get_bin_path("docker-registry") is None:
            module.fail_json(msg=f"docker-registry is not installed on {want['node']}; the image role installs it.")
        certificates.RUN.mkdir(mode=0o755, parents=True)
        started = time.monotonic()
        image = store(module, storage)
        sizes = layer_bytes(module, want["tag"], image)
        result["layers"] = [
            {"diff_id": blob.diff_id, "bytes": size, "digest": blob.digest, "file_bytes": blob.bytes}
            for blob, size in zip(image.blobs, sizes, strict=True)
        ]
        result["seconds"] = round(time.monotonic() - started, 1)
        if want["state"] == "present":
            offer(module, storage)
            name = want["tag"].rpartition(":")[0]
            result["source"] = f"{want['address']}:{want['port']}/{name}@{image.digest}"
    module.exit_json(**result)


if __name__ == "__main__":
    main()
