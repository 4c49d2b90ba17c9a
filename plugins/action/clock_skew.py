# SPDX-License-Identifier: Apache-2.0
"""How far a node's clock is from the control node's, measured over the connection that is there."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.gb10.cluster.plugins.plugin_utils._documented import argument_spec
from ansible_collections.gb10.cluster.plugins.plugin_utils._probe.skew import Sample, best


class ActionModule(ActionBase):  # type: ignore[misc]
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the node for the time a few times and use the fastest answer."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(argument_spec=argument_spec("clock_skew"))
        samples = []
        for _number in range(arguments["samples"]):
            sent = time.time()
            answer = self._low_level_execute_command("date +%s.%N", sudoable=False)
            received = time.time()
            try:
                samples.append(Sample(sent, received, float(answer["stdout"].split()[-1])))
            except (IndexError, ValueError):
                continue
        if not samples:
            result.update(failed=True, msg="The node did not answer `date +%s.%N` with a time.")
            return result
        skew_s, error_s = best(samples)
        result.update(changed=False, skew_s=round(skew_s, 4), error_s=round(error_s, 4))
        return result
