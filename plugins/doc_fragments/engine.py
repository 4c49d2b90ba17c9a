# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation shared by the modules that start, stop and swap engines."""

from __future__ import annotations


class ModuleDocFragment:
    """Where a node has the files of its engines."""

    DOCUMENTATION = r"""
options:
  units_dir:
    description: Where units are rendered.
    type: path
    default: /etc/systemd/system
  record_path:
    description: Where the active model is recorded.
    type: path
    default: /etc/gb10/engine/active.json
  run_dir:
    description: Where a start records what it found; a stopped engine's files there are removed.
    type: path
    default: /run/gb10/engine
  state_dir:
    description: Where a swap that is not decided is described.
    type: path
    default: /var/lib/gb10/engine
"""
