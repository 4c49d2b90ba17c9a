# SPDX-License-Identifier: Apache-2.0
"""Where clients reach the API: asked of real sockets, and what follows for state, status and doctor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import state as probe
from ansible_collections.gb10.cluster.plugins.module_utils._probe.client import probe_front
from ansible_collections.gb10.cluster.plugins.module_utils._probe.front import front_problem, open_sentence
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.engine import engine_checks
from ansible_collections.gb10.cluster.plugins.plugin_utils._doctor.report import FAIL, OK, WARN, Limits

FRONT = {"port": 8000, "proxied": True, "status": 401, "error": "", "open": False, "engine": 200}
CLOSED_PORT = 1


@contextmanager
def listener(models: int, health: int = 200) -> Iterator[int]:
    """Answer a request for the models and one for the health with these statuses; the port is yielded."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers
            self.send_response(health if self.path == "/health" else models)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_given: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def test_an_engine_of_its_own_is_asked_at_its_port() -> None:
    with listener(models=200) as port:
        found = probe_front(port)
    assert found == {"port": port, "proxied": False, "status": 200, "error": "", "open": True, "engine": 200}


def test_a_proxy_is_asked_at_its_own_port() -> None:
    with listener(models=200) as engine, listener(models=401) as proxy:
        found = probe_front(engine, proxy)
    assert found == {"port": proxy, "proxied": True, "status": 401, "error": "", "open": False, "engine": 200}


def test_a_proxy_that_does_not_listen_is_found() -> None:
    with listener(models=200) as engine:
        found = probe_front(engine, CLOSED_PORT)
    assert (found["status"], found["error"], found["engine"]) == (0, "refused", 200)
    problem = front_problem(found, "gx10-1")
    assert problem
    assert "the proxy on port 1 does not answer (refused)" in problem.sentence()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"status": 200, "open": True}, ""),
        ({"status": 404}, ""),
        ({"status": 0, "error": "timeout"}, "does not answer (timeout)"),
        ({"status": 502}, "answers HTTP 502"),
        # The engine does not answer either: its own state says why.
        ({"status": 503, "engine": 0}, ""),
        ({"status": 0, "engine": 503}, ""),
        # Without a proxy it is the engine's port, of which the probe reports.
        ({"status": 0, "proxied": False}, ""),
    ],
)
def test_an_engine_that_nobody_reaches_is_degraded(changes: dict[str, Any], said: str) -> None:
    front = {**FRONT, **changes}
    problem = front_problem(front, "gx10-1")
    assert said in (problem.cause if problem else "")
    assert bool(problem) is bool(said)
    api = {"health": 200, "models": ["m"], "models_status": 200, "front": front}
    canary = [{"name": "completion", "ok": True, "tokens": 8}]
    ranks = [{"node": "gx10-1", "state": probe.RUNNING}]
    merged = probe.merge(ranks, {**api, "canaries": canary}, head="gx10-1", expected={"served_name": "m"})
    assert merged.state == (probe.DEGRADED if said else probe.READY)
    assert said in merged.summary


def test_nobody_asked() -> None:
    assert front_problem({}, "gx10-1") is None
    assert open_sentence({}, "gx10-1") == ""


def test_an_open_api_is_said() -> None:
    assert open_sentence(FRONT, "gx10-1") == ""
    assert open_sentence({**FRONT, "open": True}, "gx10-1").startswith("The API on port 8000 of gx10-1 asks for no key")


@pytest.mark.parametrize(
    ("front", "level", "value"),
    [
        (FRONT, OK, "port 8000, the proxy: HTTP 401 without a key"),
        ({**FRONT, "proxied": False}, OK, "port 8000, the engine itself: HTTP 401 without a key"),
        ({**FRONT, "status": 200, "open": True}, WARN, "port 8000, the proxy: no key is asked for, "),
        ({**FRONT, "status": 502}, FAIL, "The engine answers on loopback, and the proxy on port 8000 answers HTTP 502"),
        ({**FRONT, "status": 0, "engine": 0}, None, ""),
        ({}, None, ""),
    ],
)
def test_what_the_doctor_says(front: dict[str, Any], level: str | None, value: str) -> None:
    checks = [each for each in engine_checks({"engines": [], "front": front}, Limits()) if each.name == "API"]
    assert [each.level for each in checks] == ([level] if level else [])
    assert all(each.value.startswith(value) for each in checks)
    assert all(bool(each.remedy) is (each.level != OK) for each in checks)
