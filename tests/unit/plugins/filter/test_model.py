# SPDX-License-Identifier: Apache-2.0
"""The filter about placeholders in the inventory."""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.filter.model import FilterModule


def test_a_host_without_an_address_is_judged_by_its_name() -> None:
    placeholders = FilterModule().filters()["placeholders"]
    hostvars = {"a": {"ansible_host": "CHANGE_ME"}, "b": {}, "c": {"ansible_host": "10.1.2.3"}}
    (sentence,) = placeholders(["a", "b", "c"], hostvars)
    assert sentence.startswith("a: ansible_host is still the placeholder 'CHANGE_ME'.")
