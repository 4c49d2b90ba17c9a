# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look a command-line variable up under its name, and for one release under its former name."""

from __future__ import annotations

DOCUMENTATION = r"""
name: option
short_description: Read a variable that was renamed
version_added: 0.2.0
description:
  - Returns the value of a variable; where it is not defined, that of its former name, with a warning that names the
    new one; where neither is defined, the default.
options:
  _terms:
    description: Name of the variable; exactly one.
    type: list
    elements: str
    required: true
  was:
    description: Former name of the variable.
    type: str
    required: true
  default:
    description: Value where neither name is defined.
    type: raw
    default: ""
"""

EXAMPLES = r"""
- name: Show the number of lines
  ansible.builtin.debug:
    msg: "{{ lookup('gb10.cluster.option', 'logs_lines', was='lines', default=200) }}"
"""

RETURN = r"""
_raw:
  description: The value.
  type: list
  elements: raw
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display


class LookupModule(LookupBase):  # type: ignore[misc, unused-ignore]
    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, *, was: str, default: Any = ""
    ) -> list[Any]:
        """Return the value under the new name, else under the former, else the default."""
        if len(terms) != 1:
            raise AnsibleLookupError(f"gb10.cluster.option reads one variable, not {len(terms)}.")
        name, known = terms[0], variables or {}
        if name in known:
            return [self._templar.template(known[name])]
        if was in known:
            Display().warning(f"The variable {was!r} is now named {name!r}; the former name is removed in 0.3.0.")
            return [self._templar.template(known[was])]
        return [default]
