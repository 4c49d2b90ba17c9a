#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_prune
short_description: Remove images that nothing needs any more, by exact name
version_added: 0.1.0
description:
  - Considers the images that this collection built and no other, and removes each that is neither current nor named
    by a unit nor used by a container, running or stopped, nor among the newest O(retain) of its name.
  - Refused images are removed as soon as nothing uses them.
  - Removes exact names without force, and never prunes; what the registry's storage holds of images that are gone
    is removed as well, and what engines compiled with an image that is gone.
options:
  current:
    description: The image that is verified on every member.
    type: str
    required: true
  needed:
    description: Images that a unit on any node names.
    type: list
    elements: str
    default: []
  retain:
    description: How many others of each name are kept, the newest.
    type: int
    default: 1
  state_dir:
    description: Directory of this collection on the node; V(images/) below it holds the records of verified images,
      V(image-registry/) the layers for other nodes, V(cache/) what engines compile.
    type: path
    default: /var/lib/gb10
extends_documentation_fragment:
  - gb10.cluster.attributes
"""

EXAMPLES = r"""
- name: Remove images that nothing needs
  gb10.cluster.image_prune:
    current: gb10/vllm-node:0123456789ab
    needed: [gb10/vllm-node-mimo:ba9876543210]
    retain: 1
"""

RETURN = r"""
removed:
  description: Exact names that were removed, or would be in check mode.
  returned: always
  type: list
  elements: str
removed_caches:
  description: Directories of what engines compiled with images that are gone, removed or to be removed.
  returned: always
  type: list
  elements: path
kept:
  description: Name → why it is kept.
  returned: always
  type: dict
freed_mib:
  description: Size in MiB of what was removed from the registry's storage; what the Docker Engine freed is not counted.
  returned: always
  type: float
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._image import records, registry
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import MIB
from ansible_collections.gb10.cluster.plugins.module_utils._image.retention import HANDED_OVER, to_remove

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
KEPT_FORMAT = '{{.Names}} {{.Label "gb10.keep"}}'


def built_images(module: AnsibleModule) -> list[dict[str, Any]]:
    """Return each name of each image that carries this collection's label."""
    _code, out, _err = module.run_command(
        ["docker", "image", "ls", "--quiet", "--no-trunc", "--filter", "label=gb10.image"]
    )
    # With the containerd image store, `docker image ls` leaves out an image whose layers are there in another form, as
    # another image brought them: what was recorded here is asked for by name.
    names = sorted({*out.split(), *records.tags(module.params["state_dir"])})
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        code, out, _err = module.run_command(["docker", "image", "inspect", name])
        if code == 0:
            found.update({image["Id"]: image for image in json.loads(out)})
    images = []
    for image in found.values():
        if "gb10.image" not in (image["Config"].get("Labels") or {}):
            continue
        # Containers that only protect an image from a manual prune (docker_keep) do not use it.
        _code, used, _err = module.run_command(
            ["docker", "ps", "--all", "--filter", f"ancestor={image['Id']}", "--format", KEPT_FORMAT]
        )
        containers = [line.partition(" ") for line in used.splitlines()]
        images += [
            {
                "tag": tag,
                "name": image["Config"]["Labels"]["gb10.image"],
                "created": image["Created"],
                "containers": sum(1 for _name, _space, keeps in containers if not keeps),
                "keepers": [name for name, _space, keeps in containers if keeps],
            }
            for tag in [*(image.get("RepoTags") or []), *filter(HANDED_OVER.match, image.get("RepoDigests") or [])]
        ]
    return images


def prune_caches(caches: Path, images: list[dict[str, Any]], gone: list[str], check_mode: bool) -> list[str]:
    """Remove what engines compiled with images that are gone, one directory for each fingerprint; return them."""
    used = {image["tag"].rpartition(":")[2][:12] for image in images if image["tag"] not in gone}
    found = sorted(path for path in caches.glob("*") if FINGERPRINT.fullmatch(path.name) and path.name not in used)
    if not check_mode:
        for path in found:
            shutil.rmtree(path)
    return [str(path) for path in found]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "current": {"type": "str", "required": True},
            "needed": {"type": "list", "elements": "str", "default": []},
            "retain": {"type": "int", "default": 1},
            "state_dir": {"type": "path", "default": records.STATE_DIR},
        },
        supports_check_mode=True,
    )
    want = module.params
    if module.get_bin_path("docker") is None:
        module.exit_json(changed=False, removed=[], kept={}, freed_mib=0.0)
    images = built_images(module)
    remove, kept = to_remove(images, want["current"], want["needed"], want["retain"])
    if not module.check_mode:
        for tag in remove:
            for keeper in next(image["keepers"] for image in images if image["tag"] == tag):
                module.run_command(["docker", "rm", keeper])
            code, _out, err = module.run_command(["docker", "rmi", tag])
            if code != 0:
                module.fail_json(msg=f"{tag} cannot be removed: {err.strip()}")
            records.remove(want["state_dir"], tag)
    state = Path(want["state_dir"])
    freed = registry.prune(
        state / records.REGISTRY, {image["tag"] for image in images} - set(remove), module.check_mode
    )
    for folder in (state / name for name in records.FORMER):
        freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if not module.check_mode:
            shutil.rmtree(folder, ignore_errors=True)
    caches = prune_caches(Path(want["state_dir"]) / "cache", images, remove, module.check_mode)
    names = sorted(image["tag"] for image in images)
    module.exit_json(
        changed=bool(remove or freed or caches),
        removed=remove,
        kept=kept,
        freed_mib=round(freed / MIB, 1),
        removed_caches=caches,
        diff={
            "before": "".join(f"{name}\n" for name in names),
            "after": "".join(f"{name}\n" for name in names if name not in remove),
        },
    )


if __name__ == "__main__":
    main()
