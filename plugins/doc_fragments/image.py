# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation shared by the modules that work on the recipe of an image."""

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
