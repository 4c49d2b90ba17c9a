# SPDX-License-Identifier: Apache-2.0
"""What every module says of its author, check mode, diff mode, idempotence and platform, written once."""

from __future__ import annotations

_HEAD = """
author:
  - The gb10.cluster developers (@gb10-cluster)
attributes:"""
_CHECK = """
  check_mode:
    description: Can run in check mode and report what would change without changing anything.
    support: full
"""
_IDEMPOTENT = """
  idempotent:
    description: A second run with the same options on an unchanged node reports no change.
    support: full
"""
_LINUX = """
  platform:
    description: Systems on which the module runs.
    platforms: linux
    support: full
"""
_DIFF = """
  diff_mode:
    description: Shows what changes, before and after.
    support: full
"""
_NO_DIFF = """
  diff_mode:
    description: Returns no diff.
    support: none
"""
_ACTION = """
  action:
    description: Has an action plugin, which runs on the control node.
    support: full
  async:
    description: Can be used with C(async).
    support: none
"""


class ModuleDocFragment:
    """One variant for each kind of module; a module adds C(details) where it has more to say."""

    # Changes a node and shows a diff.
    DOCUMENTATION = _HEAD + _CHECK + _DIFF + _IDEMPOTENT + _LINUX

    # Changes a node; what it changes is no text that a diff could show.
    NO_DIFF = _HEAD + _CHECK + _NO_DIFF + _IDEMPOTENT + _LINUX

    # Changes nothing.
    READS = (
        _HEAD
        + """
  check_mode:
    description: Changes nothing, and does the same in check mode.
    support: full
"""
        + _NO_DIFF
        + _IDEMPOTENT
        + _LINUX
    )

    # Runs on the control node and opens no connection to a host.
    CONTROLLER = (
        _HEAD
        + _CHECK
        + _NO_DIFF
        + _ACTION
        + """
  become:
    description: Runs with the rights of the user who runs Ansible.
    support: none
  connection:
    description: Opens no connection to a host.
    support: none
  delegation:
    description: Runs on the control node, whatever it is delegated to.
    support: none
  bypass_host_loop:
    description: Runs for each host unless C(run_once) is set.
    support: none
  platform:
    description: Systems on which the module runs.
    platforms: all
    support: full
"""
    )

    # The same, for what is on no host: it changes something elsewhere and shows a diff.
    CLUSTER_STATE = CONTROLLER.replace(_NO_DIFF, _DIFF)

    # Runs on the control node and works on the host through its connection.
    CONNECTED = (
        _HEAD
        + _CHECK
        + _NO_DIFF
        + _IDEMPOTENT
        + _ACTION
        + """
  become:
    description: Can be used with C(become).
    support: full
  connection:
    description: Uses the host's connection.
    support: full
  delegation:
    description: Can be delegated to another host.
    support: full
  bypass_host_loop:
    description: Runs for each host unless C(run_once) is set.
    support: none
"""
        + _LINUX
    )
