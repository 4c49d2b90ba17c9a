# SPDX-License-Identifier: Apache-2.0
"""The smoke test of the source [S3]: its request as it stands there, and one that must be refused.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: The place of the served name in the request, as the page writes it for a shell.
MODEL_ID = "${MODEL_ID}"


def request_body(smoke: Mapping[str, Any], model: str) -> bytes:
    """Return the request, byte for byte as a shell would send the page's command."""
    return str(smoke["body"]).replace(MODEL_ID, model).encode()


def refused_body(smoke: Mapping[str, Any], model: str) -> bytes:
    """Return the same request with one parameter at the top level, where the frontend does not take it."""
    body = json.loads(request_body(smoke, model))
    body[smoke["refused"]] = True
    return json.dumps(body).encode()


def wrong_models(status: int, text: str, model: str) -> str:
    """Return why the answer to /v1/models is not good, or an empty text."""
    try:
        served = [str(each["id"]) for each in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError):
        return f"/v1/models answered {status} and no list of models: {text[:300]}"
    if model not in served:
        return f"/v1/models lists {', '.join(served) or 'nothing'}, not {model}: the workers have not registered."
    return ""


def wrong_answer(status: int, text: str) -> str:
    """Return why the answer to the completion is not good, or an empty text."""
    if status != 200:
        return f"The completion was answered {status}: {text[:300]}"
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        tokens = int((body.get("usage") or {}).get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError, IndexError):
        return f"The completion's answer has another form than expected: {text[:300]}"
    if not str(content or "").strip():
        return f"The completion has no content (finish_reason {finish})."
    if finish not in ("stop", "length"):
        return f"The completion ended with {finish!r}, expected stop or length."
    return "" if tokens > 0 else "The completion counts no tokens (usage.completion_tokens)."


def wrong_refusal(smoke: Mapping[str, Any], status: int, text: str) -> str:
    """Return what is unexpected of the answer to the request that must be refused, or an empty text."""
    if status == 400:
        return ""
    return (
        f"{smoke['refused']} at the top level was answered {status}, expected 400: this is another frontend than the "
        f"one that the request was written for. {text[:200]}"
    ).strip()
