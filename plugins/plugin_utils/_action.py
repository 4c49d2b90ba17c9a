# SPDX-License-Identifier: Apache-2.0
"""What action plugins that run on the control node alone have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import write
from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import PRINTED
from ansible_collections.gb10.cluster.plugins.plugin_utils._choice.text import given_as_text
from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec


class ControlNodeAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """An action that contacts no host and transfers no file."""

    _requires_connection = False

    def begin(
        self, tmp: str | None, task_vars: dict[str, Any] | None, module: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the result to fill in and the task's arguments, checked against a module's documentation.

        :raises AnsibleActionFail: an argument does not fit, or the command line gives a list as text.
        """
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        if wrong := given_as_text():
            raise AnsibleActionFail(wrong)
        _validation, arguments = self.validate_argument_spec(argument_spec=argument_spec(module))
        return result, dict(arguments)

    @staticmethod
    def deliver(wish: str, document: Mapping[str, Any], lines: Sequence[str]) -> str:
        """Print lines for people, or one JSON document; return what is wrong, nothing when all is well.

        :param wish: a word for "print JSON in place of the lines" (``true``, ``-``), a path for the document beside the
            lines, or nothing.
        """
        text = json.dumps(document, indent=2, sort_keys=True)
        wish = wish.strip()
        printed = wish.lower() in PRINTED
        Display().display(text if printed else "\n".join(lines))
        if printed or wish.lower() in ("", "false", "no", "0"):
            return ""
        target = Path(wish).expanduser()
        try:
            write(target, text + "\n")
        except OSError as error:
            return f"{target} could not be written: {error.strerror}"
        return ""
