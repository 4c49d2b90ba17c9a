# SPDX-License-Identifier: Apache-2.0
"""Jinja filters of the role host."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.module_utils._node.owner import harms, owner_plan, text_lines


def docker_client_files(users: Sequence[str], settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the files (for gb10.cluster.node_files) that merge settings into each user's Docker client.

    Args:
        users: names of accounts on the node.
        settings: keys of the client's ``config.json``.
    """
    if isinstance(users, str) or not all(isinstance(user, str) and user for user in users):
        raise AnsibleFilterError(f"docker_client_files needs a list of user names, not {users!r}.")
    content = json.dumps(settings, sort_keys=True)
    return [
        {
            "path": f"~{user}/.docker/config.json",
            "content": content,
            "merge": "json",
            "mode": "0600",
            "owner": user,
        }
        for user in users
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "docker_client_files": docker_client_files,
            "owner_harms": harms,
            "owner_lines": text_lines,
            "owner_plan": owner_plan,
        }
