# SPDX-License-Identifier: Apache-2.0
"""The tool that a model is asked to call, and what its answer is worth: of the probe's canary and of the bench's gate.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "count_shelf",
        "description": "Return how many items lie in one row of one shelf of the store.",
        "parameters": {
            "type": "object",
            "properties": {
                "shelf": {"type": "string", "description": "Name of the shelf, e.g. A1."},
                "row": {"type": "integer", "description": "Number of the row, from 1."},
            },
            "required": ["shelf", "row"],
        },
    },
}
QUESTION = "How many items lie in row 3 of shelf B7? Use the tool."
ARGUMENTS = {"shelf": "B7", "row": 3}
#: What a request has besides its messages.
REQUEST: Mapping[str, Any] = {"tools": [TOOL], "tool_choice": "auto"}
#: What stands in an answer whose tool call no parser took out of it.
MARKS = ("<tool_call", "<function=", "[TOOL_CALLS]", "<|tool_call", "<minimax:tool_call", TOOL["function"]["name"])
_SHOWN_CHARS = 160


def wrong_call(calls: Sequence[Mapping[str, str]], text: str) -> str:
    """Return what is wrong with the answer to the tool's question, or an empty text.

    :param calls: name and arguments (as sent, JSON in a string) of each call that the parser returned.
    :param text: reasoning and content of the answer.
    """
    if not calls:
        if any(mark in text for mark in MARKS):
            return f"the call stands in the text, the tool-call parser did not take it out: {text[:_SHOWN_CHARS]!r}"
        return f"the model did not call the tool, but answered {text[:_SHOWN_CHARS]!r}"
    if len(calls) > 1:
        return f"{len(calls)} calls came instead of one"
    (call,) = calls
    name, wanted = call["name"], TOOL["function"]["name"]
    if name != wanted:
        return f"the call is of {name!r}, not of {wanted!r}"
    arguments = parsed(call["arguments"])
    if arguments is None:
        return f"the arguments are no JSON: {call['arguments'][:_SHOWN_CHARS]}"
    if arguments != ARGUMENTS:
        return f"the arguments are {json.dumps(arguments)[:_SHOWN_CHARS]}, not {json.dumps(ARGUMENTS)}"
    return ""
