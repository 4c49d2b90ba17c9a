# SPDX-License-Identifier: Apache-2.0
"""What an apply would change, and who stands in its way.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What the server keeps of its own in `metadata`.
_KEPT_BY_SERVER = (
    "managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds", "finalizers", "ownerReferences",
)  # fmt: skip
_OWNER = re.compile(r'conflict with "(?P<manager>[^"]+)"')


def clean(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as it could be applied: without status and without what the server keeps of its own."""
    made = {key: value for key, value in found.items() if key != "status"}
    made["metadata"] = {key: value for key, value in found["metadata"].items() if key not in _KEPT_BY_SERVER}
    return made


def differs(live: Mapping[str, Any] | None, result: Mapping[str, Any]) -> bool:
    """Return whether applying has an effect: ``result`` is what the server would make of ``live``."""
    return live is None or clean(live) != clean(result)


def conflict(causes: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return one sentence for the fields that others own."""
    owners: dict[str, list[str]] = {}
    for cause in causes:
        found = _OWNER.search(str(cause.get("message", "")))
        owners.setdefault(found["manager"] if found else "another manager", []).append(
            str(cause.get("field", "?")).lstrip(".")
        )
    said = "; ".join(f"{manager} owns {', '.join(fields)}" for manager, fields in owners.items())
    return f"{name} was changed by others: {said}. Give these fields back, or set dynamo_force=true to take them."


def failed_job(job: Mapping[str, Any]) -> bool:
    """Return whether a job has ended without success: it is replaced, for a job never runs again."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Failed" and each.get("status") == "True" for each in conditions)
