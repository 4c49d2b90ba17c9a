# SPDX-License-Identifier: Apache-2.0
"""Lists and objects of roles that a command line gave as text.

A variable of a command line is text.  The specification of a role takes ``a,b`` for a list, and a role that hands the
option on to a module has a list there.  A role that takes it apart itself would read it letter by letter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed

#: Options that their roles take apart (tests/lint/test_types.py compares this with the roles).
TAKEN_APART = frozenset(
    """
    bench_plan doctor_nodes dynamo_catalogue dynamo_node_selector dynamo_rdma dynamo_tolerations edge_nodes
    edge_open_paths edge_open_ports edge_packages edge_paths edge_tls_names engine_capabilities
    engine_capabilities_dropped engine_devices engine_docker_args engine_env engine_gpu_args engine_image
    engine_plan engine_ray_env engine_rdma_env engine_security_options engine_ulimits fabric_nodes fabric_packages
    fabric_rdma_packages fabric_subnets host_docker_client_users host_docker_config host_docker_insecure_registries
    host_held_packages host_manual_packages host_operator_keys host_packages image_members init_catalogue init_names
    model_plan monitor_disk_paths monitor_nodes monitor_packages monitor_server_packages monitor_transfer_units
    watch_hook weights_addresses weights_members weights_prepared
    """.split()
)


def given_as_text() -> str:
    """Return the `text_refusal` of this run's command line: every way into a role asks for it first.

    Those ways are the choice of a model, the check of an inventory, the lease, and each action of the control node.
    """
    # Ansible has read the command line by now, with the passwords that its files may need, and gives what it read.
    return text_refusal(load_extra_vars(DataLoader()))


def text_refusal(extra: Mapping[str, Any]) -> str:
    """Return a sentence for the first list or object that a command line gives as text; else nothing."""
    for name in sorted(TAKEN_APART & extra.keys()):
        text = extra[name]
        if not isinstance(text, str) or "{{" in text:
            continue
        meant = parsed(text)
        if not isinstance(meant, list | dict):
            meant = [each.strip() for each in text.split(",") if each.strip()]
        shown = json.dumps({name: meant}).replace("'", "'\\''")
        return f"-e {name}=… is text, where a list or an object is needed: give -e '{shown}'. Nothing was changed."
    return ""
