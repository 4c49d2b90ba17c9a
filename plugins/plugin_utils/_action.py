# SPDX-License-Identifier: Apache-2.0
"""What action plugins that run on the control node alone have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase


class ControlNodeAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """An action that contacts no host and transfers no file."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def begin(
        self, tmp: str | None, task_vars: dict[str, Any] | None, spec: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the result to fill in and the task's arguments, checked against an argument spec.

        :raises AnsibleActionFail: an argument does not fit the spec.
        """
        result: dict[str, Any] = ActionBase.run(self, tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(argument_spec=dict(spec))
        return result, dict(arguments)
