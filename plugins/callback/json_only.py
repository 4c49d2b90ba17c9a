# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leave standard output to the JSON document that a playbook was asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
name: json_only
type: aggregate
short_description: Leave standard output to the JSON document that a playbook was asked for
version_added: 0.2.0
description:
  - With C(-e status_json=true), C(-e models_json=true) or C(-e doctor_json=-) the document goes to standard output and
    everything else that Ansible prints to standard error, so that the output can be piped into a program. Does
    nothing otherwise.
  - The repository's C(ansible.cfg) enables it; elsewhere set C(ANSIBLE_CALLBACKS_ENABLED=gb10.cluster.json_only).
requirements:
  - Enabled in C(callbacks_enabled).
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ansible_collections.gb10.cluster.plugins.module_utils._probe.status import PRINTED

#: What asks for a document on standard output; the last is the former name of the first one.
VARIABLES = ("status_json", "doctor_json", "models_json", "json")


def wanted(variables: Mapping[str, Any]) -> bool:
    """Return whether the command line asks for a document on standard output."""
    return any(str(variables.get(name, "")).strip().lower() in PRINTED for name in VARIABLES)


def is_document(text: str) -> bool:
    """Return whether a message is a JSON object."""
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def diverted(display: Callable[..., None]) -> Callable[..., None]:
    """Return a `Display.display` that prints everything but a document on standard error."""

    @functools.wraps(display)
    def show(self: Display, msg: str, *given: Any, **named: Any) -> None:
        if len(given) < 2 and not is_document(str(msg)):
            named["stderr"] = True
        display(self, msg, *given, **named)

    return show


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "gb10.cluster.json_only"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Divert the display before the first line is printed."""
        if context.CLIARGS.get("extra_vars") and wanted(load_extra_vars(playbook._loader)):
            Display.display = diverted(Display.display)
