# SPDX-License-Identifier: Apache-2.0
"""A streamed completion, from bytes to an answer or to the name of what is wrong with it; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.shape import parsed

#: Kinds of failure, and what each means in a report.
FAILURES = {
    "unreachable": "no connection to the server",
    "http": "the server answered with an error status",
    "stalled": "nothing arrived for longer than the stall limit",
    "cut": "the connection ended before the answer did",
    "malformed": "a chunk of the answer is not what the API promises",
    "error": "the server reported an error in the middle of the answer",
    "empty": "the answer ended without a token",
    "no_usage": "the answer has no usage, so its tokens are not known",
    "usage_contradicts": "the answer's usages contradict each other",
}
SHOWN_CHARS = 120
_THINKING = re.compile(r"^\s*(?:<think>)?(.*?)</think>", re.DOTALL)


def excerpt(text: str) -> str:
    """Return the beginning of a text in one line, for a message."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 3] + "..."


class EventReader:
    """Cuts a stream of server-sent events into their data, wherever the network cut it."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> list[str]:
        """Return the data of each event that these bytes complete."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        found = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", errors="replace")
            if not line:
                if self._data:
                    found.append("\n".join(self._data))
                self._data = []
            elif line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
        return found

    @property
    def unfinished(self) -> str:
        """What came after the last complete event."""
        return "\n".join([*self._data, self._rest.decode("utf-8", errors="replace")]).strip()


@dataclass
class Answer:
    """What a streamed completion has said so far.

    Tokens are never counted by chunks (with speculative decoding one chunk holds several): they come from the usage.
    """

    response_s: float | None = None
    """Arrival of the first chunk of the answer, which may hold no token (the role alone)."""
    first_s: float | None = None
    last_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    token_ids: list[int | None] = field(default_factory=list)
    """Of each chunk with text: how many token ids came with it; None where the server sends none."""
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """By index: name and arguments of each call, the pieces of the arguments joined."""
    finish: str = ""
    usages: list[tuple[int, int]] = field(default_factory=list)
    done: bool = False
    failure: str = ""
    detail: str = ""
    notes: list[str] = field(default_factory=list)
    chunks: int = 0

    def fail(self, kind: str, detail: str) -> None:
        """Note what is wrong; the first thing stays."""
        if not self.failure:
            self.failure, self.detail = kind, detail

    def take(self, data: str, at_s: float) -> None:
        """Take in the data of one event that arrived at a time."""
        if self.done:
            self._note("data came after [DONE]")
            return
        if data.strip() == "[DONE]":
            self.done = True
            return
        self.chunks += 1
        chunk = parsed(data)
        if chunk is None:
            self.fail("malformed", f"chunk {self.chunks} is no JSON: {excerpt(data)}")
            return
        if not isinstance(chunk, Mapping):
            self.fail("malformed", f"chunk {self.chunks} is no object: {excerpt(data)}")
        elif chunk.get("error"):
            error = chunk["error"]
            words = error.get("message") if isinstance(error, Mapping) else error
            self.fail("error", f"after {self.chunks - 1} chunks: {excerpt(str(words))}")
        else:
            try:
                self._take_chunk(chunk, at_s)
            except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
                self.fail("malformed", f"chunk {self.chunks} has not the form of a completion: {excerpt(data)}")

    def _take_chunk(self, chunk: Mapping[str, Any], at_s: float) -> None:
        if chunk.get("usage"):
            usage = chunk["usage"]
            self.usages.append((int(usage["prompt_tokens"]), int(usage["completion_tokens"])))
        choices = chunk.get("choices") or []
        if not choices:
            return
        choice = choices[0]
        self.response_s = at_s if self.response_s is None else self.response_s
        delta = choice.get("delta") or {}
        content = delta.get("content") or choice.get("text") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if choice.get("finish_reason"):
            self.finish = str(choice["finish_reason"])
        if content or reasoning or delta.get("tool_calls"):
            self.content.append(str(content))
            self.reasoning.append(str(reasoning))
            self._take_calls(delta.get("tool_calls") or [])
            ids = choice.get("token_ids")
            self.token_ids.append(len(ids) if isinstance(ids, list) else None)
            if self.first_s is None:
                self.first_s = at_s
            elif self.last_s is not None:
                self.gaps_s.append(at_s - self.last_s)
            self.last_s = at_s
        elif self.first_s is not None and self.finish:
            # The last tokens may have no text of their own (the end of the sequence).
            self.last_s = at_s

    def _take_calls(self, pieces: Sequence[Mapping[str, Any]]) -> None:
        for piece in pieces:
            call = self.tool_calls.setdefault(int(piece.get("index") or 0), {"name": "", "arguments": ""})
            for key, text in (piece.get("function") or {}).items():
                if key in call and text:
                    call[key] += str(text)

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def close(self, unfinished: str = "") -> None:
        """The connection has ended: record whether the answer is complete."""
        if not self.done and not (self.finish and self.usages):
            rest = f", in the middle of {excerpt(unfinished)}" if unfinished else ""
            missing = "[DONE]" if self.finish else "finish_reason and [DONE]"
            self.fail("cut", f"closed after {self.chunks} chunks without {missing}{rest}")
        elif not self.done:
            self._note("closed without [DONE]")
        if not self.usages:
            self.fail(
                "no_usage", f"{self.chunks} chunks and no usage; the server must support stream_options.include_usage"
            )
            return
        if len(self.usages) > 1:
            self._note(f"usage came {len(self.usages)} times, the last one counts")
        prompts = {prompt for prompt, _completion in self.usages}
        completions = [completion for _prompt, completion in self.usages]
        if len(prompts) > 1 or completions != sorted(completions):
            shown = ", ".join(f"{prompt}+{completion}" for prompt, completion in self.usages[-4:])
            self.fail("usage_contradicts", f"prompt + completion tokens were reported as {shown}")
        if not self.output_tokens or self.first_s is None:
            usage = f"usage reports {self.output_tokens} tokens" if self.usages else "no usage"
            self.fail("empty", f"{self.chunks} chunks without text; {usage}")

    @property
    def input_tokens(self) -> int | None:
        """Tokens of the prompt as the server counted them."""
        return self.usages[-1][0] if self.usages else None

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer as the server counted them."""
        return self.usages[-1][1] if self.usages else None

    @property
    def said(self) -> tuple[str, str]:
        """The answer's reasoning and content, separated also where no reasoning parser did it."""
        return split_reasoning("".join(self.reasoning), "".join(self.content))


def split_reasoning(reasoning: str, content: str) -> tuple[str, str]:
    """Return (reasoning, content); a leading <think> block of the content belongs to the reasoning."""
    found = _THINKING.match(content)
    if found and not reasoning:
        return found.group(1), content[found.end() :]
    return reasoning, content
