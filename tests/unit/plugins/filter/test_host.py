# SPDX-License-Identifier: Apache-2.0
"""Filters of the role host."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.filter.host import FilterModule

docker_client_files = FilterModule().filters()["docker_client_files"]


def test_each_user_gets_a_file_that_is_merged_and_owned() -> None:
    found = docker_client_files(["root", "ann"], {"pruneFilters": ["label!=gb10.keep"]})
    assert [(each["path"], each["owner"]) for each in found] == [
        ("~root/.docker/config.json", "root"),
        ("~ann/.docker/config.json", "ann"),
    ]
    assert all(each["merge"] == "json" and each["mode"] == "0600" for each in found)
    assert json.loads(found[1]["content"]) == {"pruneFilters": ["label!=gb10.keep"]}


@pytest.mark.parametrize("users", ["root", [""], [1]])
def test_what_is_no_list_of_names_is_refused(users: object) -> None:
    with pytest.raises(AnsibleFilterError, match="list of user names"):
        docker_client_files(users, {})
