# SPDX-License-Identifier: Apache-2.0
"""The definition of DynamoGraphDeployment for the tests: made of the server's OpenAPI and our facts.  Pure.

Source of the shape: the operator's Go types, nvidia.com/v1beta1 (docs/sources.md [S3r]). The schema of a pod template
is the server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POD_TEMPLATE = "io.k8s.api.core.v1.PodTemplateSpec"
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_KEPT = ("type", "format", "required", "enum", "x-kubernetes-list-type", "x-kubernetes-list-map-keys")
_NAME = "^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$"


def structural(schema: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of OpenAPI v2 as a definition takes it: no references, a type everywhere."""
    reference = str(schema.get("$ref", "")).removeprefix("#/definitions/")
    if reference.endswith((".IntOrString", ".Quantity")):
        return {"x-kubernetes-int-or-string": True}
    if reference == META:
        return {
            "type": "object",
            "properties": {
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    if reference:
        return structural(known[reference], known)
    made: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        made["properties"] = {name: structural(each, known) for name, each in schema["properties"].items()}
        made["type"] = "object"
    if "additionalProperties" in schema:
        made["additionalProperties"] = structural(schema["additionalProperties"], known)
    if "items" in schema:
        items = made["items"] = structural(schema["items"], known)
        keys = made.get("x-kubernetes-list-map-keys", [])
        if set(keys) - set(items.get("required", [])):
            for key in ("x-kubernetes-list-map-keys", "x-kubernetes-list-type"):
                made.pop(key, None)
    if "type" not in made:
        made["x-kubernetes-preserve-unknown-fields"] = True
        made["type"] = "object"
    return made


def definition(openapi: Mapping[str, Any]) -> dict[str, Any]:
    """Return the CustomResourceDefinition for a server with this OpenAPI document (/openapi/v2)."""
    known = openapi["definitions"]
    text, number = {"type": "string"}, {"type": "integer", "format": "int32", "minimum": 0}
    variable = structural({"$ref": "#/definitions/io.k8s.api.core.v1.EnvVar"}, known)
    component = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {**text, "minLength": 1, "maxLength": 63, "pattern": _NAME},
            "type": {**text, "enum": ["frontend", "worker", "prefill", "decode", "planner", "epp"]},
            "replicas": number,
            "podTemplate": structural({"$ref": f"#/definitions/{POD_TEMPLATE}"}, known),
            "sharedMemorySize": {"x-kubernetes-int-or-string": True},
            "runtimeVersionOverride": {**text, "pattern": r"^\d+\.\d+\.\d+$"},
        },
    }
    spec = {
        "type": "object",
        "properties": {
            "backendFramework": {**text, "enum": ["sglang", "vllm", "trtllm"]},
            "env": {"type": "array", "items": variable},
            "components": {
                "type": "array",
                "maxItems": 25,
                "items": component,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        },
    }
    condition = {
        "type": "object",
        "properties": dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), text),
    }
    part = {
        "type": "object",
        "properties": {
            "componentKind": {**text, "enum": ["PodClique", "PodCliqueScalingGroup", "Deployment", "LeaderWorkerSet"]},
            "componentNames": {"type": "array", "items": text},
            **dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), number),
        },
    }
    status = {
        "type": "object",
        "properties": {
            "state": {**text, "enum": ["initializing", "pending", "successful", "failed"], "default": "initializing"},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {"type": "array", "items": condition},
            "components": {"type": "object", "additionalProperties": part},
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "dynamographdeployments.nvidia.com"},
        "spec": {
            "group": "nvidia.com",
            "scope": "Namespaced",
            "names": {
                "kind": "DynamoGraphDeployment",
                "plural": "dynamographdeployments",
                "singular": "dynamographdeployment",
                "shortNames": ["dgd"],
            },
            "versions": [
                {
                    "name": "v1beta1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
                }
            ],
        },
    }
