# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.dynamo_object: dry run on the server, compare, apply only what differs; or delete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._node.files import diff
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo import difference
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.action import DynamoAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._dynamo.cluster import KINDS, Cluster, ClusterError

GONE_SECONDS = 600.0
PAUSE_SECONDS = 0.5


def named(made: Mapping[str, Any]) -> str:
    """Return how an object is called in messages."""
    return f"{made['kind']} {made['metadata']['name']}"


class ActionModule(DynamoAction):
    module = "dynamo_object"

    def act(self, cluster: Cluster, args: Mapping[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        dry = bool(args["dry_run"] or self._task.check_mode)
        made = args["object"]
        if made.get("kind") not in KINDS or not ((made.get("metadata") or {}).get("name") or args["selector"]):
            kinds = ", ".join(KINDS)
            return {
                "failed": True,
                "msg": f"object needs metadata.name and a kind among {kinds}; it has {made.get('kind')!r}.",
            }
        if args["state"] == "absent":
            return self._remove(cluster, made, args["selector"], dry)
        return self._put(cluster, made, args, dry)

    def _put(self, cluster: Cluster, made: Mapping[str, Any], args: Mapping[str, Any], dry: bool) -> dict[str, Any]:
        kind, meta = made["kind"], made["metadata"]
        space = meta.get("namespace", "")
        live = cluster.get(kind, meta["name"], space)
        if live is not None and args["create_only"]:
            return {"object": live}
        replaced = live is not None and kind == "Job" and difference.failed_job(live)
        if replaced:
            self.say(f"{named(made)} ended without success before: it is run again")
            if dry:
                return {"changed": True, "object": live}
            self._delete(cluster, kind, meta["name"], space)
            live = None
        try:
            result = cluster.apply(made, dry_run=True, force=args["force"])
        except ClusterError as error:
            return self._refused(cluster, made, error, dry)
        if not difference.differs(live, result) and not replaced:
            return {"object": live}
        texts = [yaml.safe_dump(difference.clean(each), sort_keys=False) if each else "" for each in (live, result)]
        shown = diff(named(made), *texts)
        if not dry:
            result = cluster.apply(made, force=args["force"])
        # A rehearsal on purpose changes nothing; check mode reports what would change.
        return {"changed": not args["dry_run"], "object": result, "diff": shown}

    def _refused(self, cluster: Cluster, made: Mapping[str, Any], error: ClusterError, dry: bool) -> dict[str, Any]:
        if error.status == 409 and error.causes:
            raise ClusterError(difference.conflict(error.causes, named(made)), error.status) from error
        space = made["metadata"].get("namespace", "")
        if dry and error.status == 404 and space and cluster.get("Namespace", space) is None:
            self.say(f"{named(made)}: not checked by the server, for the namespace {space} does not exist yet")
            return {"changed": True, "object": dict(made)}
        raise ClusterError(f"{named(made)} is refused: {error}", error.status, error.causes) from error

    def _remove(self, cluster: Cluster, made: Mapping[str, Any], selector: str, dry: bool) -> dict[str, Any]:
        kind, meta = made["kind"], made["metadata"]
        space, kept = meta.get("namespace", ""), meta.get("name", "")
        try:
            if selector:
                found = [each["metadata"]["name"] for each in cluster.find(kind, space, selector)]
                names = [name for name in found if name != kept]
            else:
                names = [kept] if cluster.get(kind, kept, space) else []
        except ClusterError as error:
            # A cluster without the platform has no such kind, hence no such object.
            if error.status != 404:
                raise
            names = []
        for name in names:
            if dry:
                cluster.delete(kind, name, space, dry_run=True)
            else:
                self._delete(cluster, kind, name, space, waits=kind != "Namespace")
        return {"changed": bool(names), "removed": names}

    def _delete(self, cluster: Cluster, kind: str, name: str, space: str, waits: bool = True) -> None:
        """Delete one object; a claim in use and a graph go when their pods have gone, which is waited for elsewhere."""
        cluster.delete(kind, name, space)
        until = time.monotonic() + GONE_SECONDS
        while waits and kind in ("Job", "ConfigMap", "Secret") and cluster.get(kind, name, space) is not None:
            if time.monotonic() > until:
                raise ClusterError(
                    f"{kind} {name} was deleted and is still there after {GONE_SECONDS:.0f} s: see its finalizers."
                )
            time.sleep(PAUSE_SECONDS)
