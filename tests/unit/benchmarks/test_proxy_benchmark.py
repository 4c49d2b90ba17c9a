# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the proxy: it runs the role's own configuration, away from the places of a node."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import BenchError
from benchmarks import proxy
from lab.ports import free_port


def test_the_configuration_is_the_roles_in_another_place(tmp_path: Path) -> None:
    text = proxy.configuration(tmp_path, 8001, 8002)
    assert "listen 127.0.0.1:8001;" in text
    assert "server 127.0.0.1:8002 max_fails=0;" in text
    assert f"include {tmp_path}/key.conf;" in text
    assert f"pid {tmp_path}/nginx.pid;" in text
    assert "/run/" not in text
    assert "/etc/" not in text
    assert "return 401" in text


def test_a_port_that_listens_is_told_from_one_that_does_not() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert proxy.listens(port)
    assert not proxy.listens(port)


def test_a_proxy_that_does_not_start_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "nginx"
    broken.write_text("#!/bin/sh\necho no such option >&2; exit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BenchError, match=r"nginx ended with 3: no such option"), proxy.proxy(str(broken), 1):
        pass
