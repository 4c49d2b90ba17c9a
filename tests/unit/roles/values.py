# SPDX-License-Identifier: Apache-2.0
"""Values of a role's variables, as Ansible's own templates make them."""

from __future__ import annotations

from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.lint.collection import REPO


def _trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _trusted(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_trusted(part) for part in value]
    return trust_as_template(value) if isinstance(value, str) else value


def templated(text: str, **values: Any) -> Any:
    """Return what a template comes to with some values, in which templates count as well."""
    return Templar(DataLoader(), variables=_trusted(values)).template(trust_as_template(text))


def role_variable(role: str, name: str, **given: Any) -> Any:
    """Return a variable of a role with its defaults and some values that an inventory gives."""
    values: dict[str, Any] = {}
    for file in ("defaults", "vars"):
        values |= yaml.safe_load((REPO / "roles" / role / file / "main.yml").read_text(encoding="utf-8"))
    return templated("{{ " + name + " }}", **{**values, **given})
