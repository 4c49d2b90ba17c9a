# SPDX-License-Identifier: Apache-2.0
"""The proxy's configuration: where it listens, which paths ask for the key, what an engine that serves leaves it."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.gb10.cluster.plugins.module_utils._edge.follow import mark
from tests.lint.collection import REPO

from .values import role_variable

ROLE = REPO / "roles/edge"
LOOPBACK = {"model": "m", "api_port": 29602, "proxy_port": 8000}
DIRECT = {"model": "m", "api_port": 8000, "proxy_port": 0}
#: As a release before there was a proxy recorded it.
FORMER = {"model": "m", "api_port": 8000}
VALUES: dict[str, Any] = {
    "edge_tls": True,
    "edge_max_body": "256m",
    "edge_silence_seconds": 3600,
    "edge_paths": ["/v1/", "/health", "/tokenize"],
    "edge_open_paths": ["/health"],
    "__edge_key": {"keyed": True},
    "_edge_listeners": [
        {"address": "0.0.0.0", "port": 8000, "tls": False},
        {"address": "0.0.0.0", "port": 443, "tls": True},
    ],
    "_edge_upstream": {"address": "127.0.0.1", "port": 29602},
    "_edge_target": {"api_port": 29602, "proxy_port": 8000},
}


def render(**changes: Any) -> str:
    """Return the configuration with the values of a head."""
    loader = jinja2.FileSystemLoader(ROLE / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["bool"] = bool
    return environment.get_template("nginx.conf.j2").render({**VALUES, **changes})


def servers(text: str) -> dict[str, dict[str, str]]:
    """Return the bodies of the locations of each listener."""
    found = {}
    for body in re.findall(r"^    server \{\n(.*?)^    \}", text, re.MULTILINE | re.DOTALL):
        listen = re.search(r"listen (.*);", body)
        assert listen
        locations = re.findall(r"^        location (.*?) \{\n(.*?)^        \}", body, re.MULTILINE | re.DOTALL)
        found[listen[1]] = dict(locations)
    return found


def test_every_path_but_the_open_ones_asks_for_the_key_on_every_port() -> None:
    found = servers(render())
    assert list(found) == ["0.0.0.0:8000", "0.0.0.0:443 ssl http2"]
    for locations in found.values():
        assert list(locations) == ["@engine", "/", "/v1/", "= /health", "= /tokenize"]
        assert {path for path, body in locations.items() if "return 401" in body} == {"/v1/", "= /tokenize"}
        assert {path for path, body in locations.items() if "proxy_pass" in body} == {
            "/v1/",
            "= /health",
            "= /tokenize",
        }
        assert "return 404" in locations["/"]


def test_without_a_key_the_list_of_paths_is_all_there_is() -> None:
    text = render(__edge_key={"keyed": False})
    assert "401" not in text
    assert "key.conf" not in text
    assert "return 404" in text


def test_without_tls_no_certificate_is_named() -> None:
    text = render(edge_tls=False, _edge_listeners=VALUES["_edge_listeners"][:1])
    assert "ssl" not in text
    assert "server 127.0.0.1:29602 max_fails=0;" in text


def test_nothing_is_held_back_in_either_direction() -> None:
    text = render()
    for line in (
        "proxy_buffering off;",
        "proxy_request_buffering off;",
        "client_max_body_size 256m;",
        "proxy_read_timeout 3600s;",
    ):
        assert text.count(line) == 2


@pytest.mark.parametrize(
    ("record", "proxy", "tls", "expected"),
    [
        ({}, True, False, "run"),
        (LOOPBACK, True, False, "run"),
        (DIRECT, True, False, "wait"),
        (FORMER, True, True, "wait"),
        (LOOPBACK, False, False, "keep"),
        (LOOPBACK, False, True, "keep"),
        (DIRECT, False, True, "run"),
        (DIRECT, False, False, "absent"),
        ({}, False, False, "absent"),
        (FORMER, "false", "false", "absent"),
    ],
)
def test_the_proxy_takes_no_port_from_an_engine_that_serves(
    record: dict[str, Any], proxy: Any, tls: Any, expected: str
) -> None:
    found = role_variable("edge", "_edge_now", edge_proxy=proxy, edge_tls=tls, __edge_engine={"record": record})
    assert found.strip() == expected


@pytest.mark.parametrize(
    ("record", "changes", "listeners", "upstream"),
    [
        ({}, {}, [8000], 29602),
        (LOOPBACK, {}, [8000], 29602),
        # Ports of the engine that serves, until another one is verified.
        ({**LOOPBACK, "api_port": 29700, "proxy_port": 8100}, {}, [8100], 29700),
        (LOOPBACK, {"edge_tls": "true"}, [8000, 443], 29602),
        (DIRECT, {"edge_proxy": "false", "edge_tls": True}, [443], 8000),
    ],
)
def test_the_proxy_follows_the_engine_that_serves(
    record: dict[str, Any], changes: dict[str, Any], listeners: list[int], upstream: int
) -> None:
    given = {"edge_proxy": True, "edge_api_port": 8000, "__edge_engine": {"record": record}, **changes}
    assert [each["port"] for each in role_variable("edge", "_edge_listeners", **given)] == listeners
    assert role_variable("edge", "_edge_upstream", **given) == {"address": "127.0.0.1", "port": upstream}


@pytest.mark.parametrize(
    ("record", "proxy", "expected"),
    [
        ({}, True, None),
        (LOOPBACK, True, None),
        (FORMER, True, LOOPBACK),
        ({**LOOPBACK, "proxy_port": 8100}, True, LOOPBACK),
        (LOOPBACK, False, DIRECT),
        (FORMER, False, None),
    ],
)
def test_a_configuration_waits_for_an_engine_that_will_be_somewhere_else(
    record: dict[str, Any], proxy: bool, expected: dict[str, Any] | None
) -> None:
    given = {"edge_proxy": proxy, "edge_api_port": 8000, "edge_tls": True, "__edge_engine": {"record": record}}
    coming = role_variable("edge", "_edge_next", **given)
    assert (coming != role_variable("edge", "_edge_serving", **given)) is (expected is not None)
    if expected:
        ports = [each["port"] for each in role_variable("edge", "_edge_listeners", **given, _edge_target=coming)]
        assert ports == ([8000, 443] if proxy else [443])
        assert mark(expected) in render(_edge_target=coming).splitlines()


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ({}, ["0.0.0.0"]),
        ({"engine_api_host": "127.0.0.1"}, ["127.0.0.1"]),
        ({"engine_api_host": "localhost"}, ["127.0.0.1"]),
        ({"engine_api_host": "192.168.1.20"}, ["192.168.1.20", "127.0.0.1"]),
        ({"engine_api_host": "::"}, ["::", "0.0.0.0"]),
        ({"engine_api_host": "fd00::20"}, ["fd00::20", "127.0.0.1"]),
    ],
)
def test_the_proxy_listens_where_the_engine_would_without_it_and_on_loopback(
    given: dict[str, str], addresses: list[str]
) -> None:
    """An inventory that keeps the API off some addresses keeps it off them behind the proxy as well."""
    found = role_variable(
        "edge", "_edge_listeners", edge_proxy=True, edge_api_port=8000, __edge_engine={"record": {}}, **given
    )
    assert found == [{"address": address, "port": 8000, "tls": False} for address in addresses]


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    found = servers(render(_edge_listeners=[{"address": "fd00::20", "port": 8000, "tls": False}]))
    assert list(found) == ["[fd00::20]:8000"]


@pytest.mark.parametrize(
    ("tls", "off"), [(False, "edge_proxy: false in"), (True, "edge_proxy: false and edge_tls: false in")]
)
def test_a_head_that_cannot_install_the_proxy_names_what_does_without_it(tls: bool, off: str) -> None:
    tasks = yaml.safe_load((ROLE / "tasks/proxy_install.yml").read_text(encoding="utf-8"))
    refusal = tasks[-1]["rescue"][-1]["ansible.builtin.fail"]["msg"]
    known = {
        "edge_packages": ["nginx-light"],
        "edge_tls": tls,
        "inventory_hostname": "gx10-1",
        "ansible_failed_result": {"msg": "apt-get update failed: Could not resolve 'ports.ubuntu.com'"},
    }
    assert Templar(loader=DataLoader(), variables=known).template(trust_as_template(refusal)) == (
        "The proxy of the API needs nginx-light on gx10-1, which cannot be installed: apt-get update failed: Could not "
        f"resolve 'ports.ubuntu.com' No engine was touched. Install it by hand, or set {off} the inventory: the engine "
        "then has the API's port itself."
    )


def test_the_engine_stands_behind_the_proxy_that_the_role_has_by_default() -> None:
    """Two defaults of one decision: that of the role, and that of the playbooks for the engine."""
    ours = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))["edge_proxy"]
    playbooks = yaml.safe_load((REPO / "playbooks/group_vars/all/cluster.yml").read_text(encoding="utf-8"))
    behind = trust_as_template(playbooks["engine_behind_proxy"])
    for given, expected in (({}, ours), ({"edge_proxy": "false"}, False), ({"edge_proxy": True}, True)):
        assert Templar(loader=DataLoader(), variables=given).template(behind) is expected
    assert ours is True
