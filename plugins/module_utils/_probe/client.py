# SPDX-License-Identifier: Apache-2.0
"""The HTTP of the probe: Ansible's client, no proxy, a limit on silence, a key that stays in a header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.error import HTTPError, URLError

from ansible.module_utils.urls import open_url

from ansible_collections.gb10.cluster.plugins.module_utils._probe.api import ProbeHttpError, Reply

MAX_BODY_BYTES = 8 << 20


def error_word(problem: BaseException) -> str:
    """`refused`, `timeout`, or the client's own words for a request that got no HTTP answer."""
    reason = problem.reason if isinstance(problem, URLError) else problem
    if isinstance(reason, ConnectionRefusedError):
        return "refused"
    if isinstance(reason, TimeoutError) or "timed out" in str(reason):
        return "timeout"
    return str(reason) or type(reason).__name__


class OpenUrlClient:
    """Client of `probe_http` over ansible.module_utils.urls.

    url: scheme, host and port; silence_s: seconds without a byte after which a completion is
    given up; short_s: the same for the quick questions.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        silence_s: float = 120.0,
        short_s: float = 5.0,
        validate_certs: bool = True,
        ca_path: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.silence_s = silence_s
        self.short_s = short_s
        self.validate_certs = validate_certs
        self.ca_path = ca_path
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def _open(self, method: str, path: str, data: str | None, timeout_s: float) -> Any:
        headers = dict(self.headers)
        if data is not None:
            headers["Content-Type"] = "application/json"
        return open_url(
            self.url + path,
            method=method,
            data=data,
            headers=headers,
            timeout=timeout_s,
            use_proxy=False,
            validate_certs=self.validate_certs,
            ca_path=self.ca_path,
            http_agent="gb10-cluster-probe",
            follow_redirects="none",
        )

    def _ask(self, method: str, path: str, data: str | None, timeout_s: float) -> Reply:
        try:
            with self._open(method, path, data, timeout_s) as answer:
                return Reply(int(answer.status), answer.read(MAX_BODY_BYTES).decode("utf-8", "replace"))
        except HTTPError as problem:
            return Reply(int(problem.code), problem.read(65536).decode("utf-8", "replace"))
        except (URLError, OSError, ValueError) as problem:
            return Reply(0, "", error_word(problem))

    def get(self, path: str) -> Reply:
        """GET a path; never raises."""
        return self._ask("GET", path, None, self.short_s)

    def post(self, path: str, payload: Mapping[str, Any]) -> Reply:
        """POST JSON; never raises."""
        return self._ask("POST", path, json.dumps(payload), self.silence_s)

    def stream(self, path: str, payload: Mapping[str, Any]) -> Iterator[str]:
        """POST JSON and yield lines as they come; raises ProbeHttpError with what went wrong."""
        try:
            with self._open("POST", path, json.dumps(payload), self.silence_s) as answer:
                for raw in answer:
                    yield raw.decode("utf-8", "replace").rstrip("\r\n")
        except HTTPError as problem:
            body = problem.read(65536).decode("utf-8", "replace").strip()
            raise ProbeHttpError(int(problem.code), f"HTTP {problem.code}: {body[:300]}") from problem
        except (URLError, OSError, ValueError) as problem:
            word = error_word(problem)
            said = f"no byte for {self.silence_s:.0f} s" if word == "timeout" else word
            raise ProbeHttpError(0, said) from problem
