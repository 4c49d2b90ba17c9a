# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API: read, apply on the server, delete, logs, rights.  It decides nothing.

Requests are made with the connection of the Python package ``kubernetes``, which reads the kubeconfig with all its
kinds of credentials; objects are plain dictionaries.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

# A second of work, done once: the workers of Ansible are forks of the process that loads this.
try:
    import kubernetes
except ImportError:
    kubernetes = None

MANAGER = "gb10.cluster"
#: kind → (prefix, plural, whether it lives in a namespace).
KINDS: Mapping[str, tuple[str, str, bool]] = {
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "Pod": ("/api/v1", "pods", True),
    "Event": ("/api/v1", "events", True),
    "Secret": ("/api/v1", "secrets", True),
    "ConfigMap": ("/api/v1", "configmaps", True),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims", True),
    "Job": ("/apis/batch/v1", "jobs", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "StorageClass": ("/apis/storage.k8s.io/v1", "storageclasses", False),
    "RuntimeClass": ("/apis/node.k8s.io/v1", "runtimeclasses", False),
    "DynamoGraphDeployment": ("/apis/nvidia.com/v1beta1", "dynamographdeployments", True),
}
REQUEST_SECONDS = 60.0
#: Events and logs of a cluster are read in portions of this many.
PAGE = 500


class ClusterError(RuntimeError):
    """The API refused, or does not answer.

    :ivar status: HTTP status, 0 where there was no answer.
    :ivar causes: of a conflict or of an invalid object: ``field``, ``message`` each.
    """

    def __init__(self, words: str, status: int = 0, causes: tuple[Mapping[str, Any], ...] = ()) -> None:
        super().__init__(words)
        self.status = status
        self.causes = causes

    @property
    def forbidden(self) -> bool:
        return self.status == 403


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of a server behind the API."""

    status: int
    body: bytes = field(repr=False)


def path_of(kind: str, namespace: str = "", name: str = "") -> str:
    """Return the path of a kind's list, or of one object; without a namespace, of all namespaces."""
    prefix, plural, namespaced = KINDS[kind]
    inside = f"/namespaces/{quote(namespace)}" if namespaced and namespace else ""
    return f"{prefix}{inside}/{plural}" + (f"/{quote(name)}" if name else "")


def refusal(status: int, body: bytes) -> ClusterError:
    """Return the error for an answer that is none: the server's own words."""
    try:
        found = json.loads(body)
        words, details = str(found["message"]), found.get("details") or {}
    except (ValueError, KeyError, TypeError):
        return ClusterError(f"{status}: {body[:300].decode(errors='replace').strip() or 'no words'}", status)
    return ClusterError(words, status, tuple(details.get("causes") or ()))


class Cluster:
    """One cluster; see `connect`."""

    def __init__(self, host: str, pool: Any, headers: Mapping[str, str]) -> None:
        self.host = host.rstrip("/")
        self._pool = pool
        self._headers = dict(headers)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> Answer:
        """Send one request and return its answer, whatever its status.

        :raises ClusterError: there is no answer.
        """
        import urllib3

        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers, "Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = content
        try:
            found = self._pool.request(
                method, url, body=body, headers=headers, timeout=seconds, retries=urllib3.Retry(0, redirect=0)
            )
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise ClusterError(
                f"The Kubernetes API at {self.host} does not answer: {reason}. Check dynamo_kubeconfig, "
                "dynamo_context and the network."
            ) from error
        return Answer(int(found.status), bytes(found.data))

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Send one request and return the object of its answer.

        :raises ClusterError: with the server's words, where it refused.
        """
        raw = None if body is None else json.dumps(body).encode()
        answer = self.ask(method, path, body=raw, **more)
        if answer.status >= 400:
            raise refusal(answer.status, answer.body)
        found: dict[str, Any] = json.loads(answer.body or b"{}")
        return found

    def get(self, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        """Return one object, or None where there is none."""
        try:
            return self.request("GET", path_of(kind, namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: str, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        """Return all objects of a kind, of one namespace or of all, that a label selector matches."""
        found: list[dict[str, Any]] = []
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = self.request("GET", path_of(kind, namespace), query=query)
            found += page.get("items") or []
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return found
            query["continue"] = following

    def apply(self, made: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Apply an object on the server as this collection's field manager; return what it became, or would become."""
        meta = made["metadata"]
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        path = path_of(made["kind"], meta.get("namespace", ""), meta["name"])
        return self.request("PATCH", path, made, query=query, content="application/apply-patch+yaml")

    def annotate(self, kind: str, name: str, namespace: str, annotations: Mapping[str, str]) -> None:
        """Add annotations to an object."""
        made = {"metadata": {"annotations": dict(annotations)}}
        self.request("PATCH", path_of(kind, namespace, name), made, content="application/merge-patch+json")

    def delete(self, kind: str, name: str, namespace: str = "", *, dry_run: bool = False) -> bool:
        """Delete an object and, before it, what it owns; return whether there was one."""
        options: dict[str, Any] = {"propagationPolicy": "Foreground"}
        if dry_run:
            options["dryRun"] = ["All"]
        try:
            self.request("DELETE", path_of(kind, namespace, name), options)
        except ClusterError as error:
            if error.status == 404:
                return False
            raise
        return True

    def log(self, pod: str, namespace: str, container: str, lines: int, *, previous: bool = False) -> str:
        """Return the last lines of a container's log, or an empty text where there is none to be had."""
        query = {"container": container, "tailLines": str(lines)}
        if previous:
            query["previous"] = "true"
        with contextlib.suppress(ClusterError):
            answer = self.ask("GET", f"{path_of('Pod', namespace, pod)}/log", query=query)
            if answer.status == 200:
                return answer.body.decode(errors="replace")
        return ""

    def served(self, group: str) -> dict[str, list[str]]:
        """Return version → plurals of the resources that the API serves in a group."""

        def items(path: str, key: str) -> Any:
            # A group or version that is only being installed, or removed, is not served.
            answer = self.ask("GET", path)
            if answer.status == 404:
                return []
            if answer.status >= 400:
                raise refusal(answer.status, answer.body)
            return json.loads(answer.body).get(key) or []

        return {
            str(each["version"]): [str(one["name"]) for one in items(f"/apis/{each['groupVersion']}", "resources")]
            for each in items(f"/apis/{group}", "versions")
        }

    def allowed(self, verb: str, group: str, resource: str, namespace: str = "") -> bool:
        """Return whether this user may do something (SelfSubjectAccessReview)."""
        resource, _slash, sub = resource.partition("/")
        asked = {"verb": verb, "group": group, "resource": resource, "subresource": sub, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool((answer.get("status") or {}).get("allowed"))


def connect(kubeconfig: str = "", context: str = "") -> Cluster:
    """Return the cluster of a kubeconfig; without one, of KUBECONFIG or ~/.kube/config.

    :raises ClusterError: the package ``kubernetes`` is missing, or the kubeconfig cannot be used.
    """
    if kubernetes is None:
        raise ClusterError(
            "The control node's Python has no package kubernetes. Install what requirements.lock lists, or "
            "`pip install kubernetes`."
        )
    try:
        api = kubernetes.config.new_client_from_config(
            config_file=os.path.expanduser(kubeconfig) if kubeconfig else None,  # noqa: PTH111  (the API takes a text)
            context=context or None,
        )
    except (kubernetes.config.ConfigException, OSError, ValueError) as error:
        where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        words = " ".join(str(error).split()).rstrip(".")
        raise ClusterError(
            f"The kubeconfig {where} cannot be used: {words}. Set dynamo_kubeconfig and dynamo_context."
        ) from error
    headers: dict[str, str] = {}
    api.update_params_for_auth(headers, [], ["BearerToken"])
    return Cluster(api.configuration.host, api.rest_client.pool_manager, headers)
