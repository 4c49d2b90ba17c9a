# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say which list or object of a role the command line gives as text."""

from __future__ import annotations

DOCUMENTATION = r"""
name: text_options
short_description: Find a list that the command line gives as text
version_added: 0.2.0
description:
  - Returns a sentence for the first option of a role that a command line gives as text although the role takes a list
    or an object apart, with what to write instead; nothing where there is none.
options: {}
"""

EXAMPLES = r"""
- name: Refuse a list that the command line gives as text
  ansible.builtin.assert:
    that: lookup('gb10.cluster.text_options') | length == 0
    fail_msg: "{{ lookup('gb10.cluster.text_options') }}"
"""

RETURN = r"""
_raw:
  description: The sentence, or an empty text.
  type: list
  elements: str
"""

from typing import Any

from ansible.plugins.lookup import LookupBase

from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import given_as_text


class LookupModule(LookupBase):  # type: ignore[misc, unused-ignore]
    def run(self, terms: list[str], variables: dict[str, Any] | None = None) -> list[str]:
        """Return the sentence."""
        return [given_as_text()]
