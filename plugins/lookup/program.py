# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: program
short_description: Path on a node of a program of this collection
version_added: 0.1.0
description:
  - Returns where M(gb10.cluster.program) installs a program. The name carries the digest of the program's code, so the
    path changes when the code does and at no other time.
  - Nothing is read from a node.
options:
  _terms:
    description: Names of programs.
    required: true
"""

EXAMPLES = r"""
- name: Show what a unit would run
  ansible.builtin.debug:
    msg: "/usr/bin/python3 {{ lookup('gb10.cluster.program', 'watch') }} watch"
"""

RETURN = r"""
_raw:
  description: One path for each program.
  type: list
  elements: path
  sample: [/usr/local/lib/gb10/gb10-watch-0123456789ab.pyz]
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gb10.cluster.plugins.plugin_utils._program import ProgramError, build


class LookupModule(LookupBase):  # type: ignore[misc]
    """Names of programs to their paths on a node."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return one path for each program."""
        try:
            return [build(str(term)).path for term in terms]
        except ProgramError as error:
            raise AnsibleError(str(error)) from error
