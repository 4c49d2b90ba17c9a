# SPDX-License-Identifier: Apache-2.0
"""Ask a registry which digest a tag has (OCI distribution specification); standard library only."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import DIGEST, ImageError

DOCKER_HUB = "registry-1.docker.io"
TIMEOUT_SECONDS = 60
_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_REFERENCE = re.compile(
    r"(?:(?P<host>[a-z0-9.-]+\.[a-z0-9.-]+(?::\d+)?|localhost(?::\d+)?|[a-z0-9-]+:\d+)/)?"
    r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Reference:
    """An image in a registry; ``host`` is empty for Docker Hub, ``digest`` when none is given."""

    host: str
    name: str
    tag: str
    digest: str

    @property
    def pinned(self) -> str:
        """The reference with its digest, as a Dockerfile takes it."""
        return f"{self.host}/{self.name}@{self.digest}" if self.host else f"{self.name}@{self.digest}"

    @property
    def full_name(self) -> str:
        """The name as its registry has it: official images of Docker Hub are in ``library/``."""
        return f"library/{self.name}" if self.host in ("", "docker.io") and "/" not in self.name else self.name

    @property
    def url(self) -> str:
        """Where the registry describes the tag; plain HTTP only on this machine, as for the Docker Engine."""
        host, name = DOCKER_HUB if self.host in ("", "docker.io") else self.host, self.full_name
        plain = re.match(r"(?:localhost|127\.\d+\.\d+\.\d+)(?::|$)", host)
        return f"{'http' if plain else 'https'}://{host}/v2/{name}/manifests/{self.tag}"


def parse(text: str) -> Reference | None:
    """Return the parts of ``[host/]name[:tag][@sha256:…]``, or None when a text is no reference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    return Reference(match["host"] or "", match["name"], match["tag"] or "latest", match["digest"] or "")


def credentials(config: Path, host: str) -> str:
    """Return what ``docker login`` has stored for a registry (Base64 of user:password), or an empty string."""
    try:
        auths = json.loads(config.read_text(encoding="utf-8"))["auths"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    names = [host] if host not in ("", "docker.io") else ["https://index.docker.io/v1/", "docker.io"]
    return next((str(auths[name].get("auth", "")) for name in names if isinstance(auths.get(name), dict)), "")


def _open(url: str, headers: dict[str, str], method: str = "GET") -> Any:
    request = urllib.request.Request(url, headers=headers, method=method)
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)


def _token(challenge: str, login: str) -> str:
    """Return the Authorization header that a registry asks for."""
    kind, _space, rest = challenge.partition(" ")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    if kind.lower() == "basic" or "realm" not in fields:
        return f"Basic {login}" if login else ""
    query = urllib.parse.urlencode({key: value for key, value in fields.items() if key in ("service", "scope")})
    with _open(f"{fields['realm']}?{query}", {"Authorization": f"Basic {login}"} if login else {}) as reply:
        answer = json.loads(reply.read())
    return f"Bearer {answer.get('token') or answer['access_token']}"


def digest_of_tag(reference: Reference, config: Path) -> str:
    """Return the digest that a registry has for a tag now.

    :param config: Docker's client configuration, for registries that want a login.
    :raises ImageError: the registry does not answer, does not know the tag, or refuses.
    """
    where = f"{reference.name}:{reference.tag}"
    headers = {"Accept": ", ".join(_TYPES), "User-Agent": "gb10.cluster"}
    registry = urllib.parse.urlsplit(reference.url).netloc
    try:
        for attempt in range(2):
            try:
                with _open(reference.url, headers, "HEAD") as reply:
                    found = str(reply.headers.get("Docker-Content-Digest") or "")
                break
            except urllib.error.HTTPError as problem:
                challenge = problem.headers.get("WWW-Authenticate", "")
                if problem.code != 401 or not challenge or attempt:
                    raise
                headers["Authorization"] = _token(challenge, credentials(config, reference.host))
    except urllib.error.HTTPError as problem:
        reason = {
            401: "it wants a login: run `docker login` as root on this node",
            403: "it refuses access",
            404: "it has no such image or tag",
            429: "it limits requests: log in, or try later",
        }.get(problem.code, f"status {problem.code}")
        raise ImageError(f"{registry} does not give {where}: {reason}.") from problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ImageError(
            f"{registry} does not answer for {where}: {problem}. Check this node's way to the registry; an image whose "
            "digest is locked and that is built already needs none."
        ) from problem
    if not DIGEST.fullmatch(found):
        raise ImageError(f"{registry} names no digest for {where} ('{found[:80]}').")
    return found
