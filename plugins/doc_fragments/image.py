# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation shared by the modules about images."""

from __future__ import annotations


class ModuleDocFragment:
    """The image and the catalogue that it is in."""

    DOCUMENTATION = r"""
options:
  name:
    description: Key of O(images).
    type: str
    required: true
  images:
    description: The image catalogue.
    type: dict
    required: true
"""

    # An image on a node.
    NODE = r"""
options:
  tag:
    description: The image.
    type: str
    required: true
  state_dir:
    description: >-
      Directory of this collection on the node; V(images/) below it holds the records of verified images,
      V(image-registry/) the storage of the registry.
    type: path
    default: /var/lib/gb10
"""

    # An image that needs space.
    ROOM = r"""
options:
  reserve_gib:
    description: What must stay free on the file system, in GiB.
    type: float
    default: 0
"""
