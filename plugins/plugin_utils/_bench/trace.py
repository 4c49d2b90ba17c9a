# SPDX-License-Identifier: Apache-2.0
"""Traces in the mooncake format, and AIPerf's command and results; pure.

A line of a trace is one request: ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``. Each hash
stands for a block of the prompt (512 tokens): requests that begin with the same hashes share the beginning of
their prompts, which is what a prefix cache finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.prompt import CONTINUE, filler

BLOCK_TOKENS = 512
#: Blocks of words are made a little short, so that what the words add up to never exceeds the asked length.
BLOCK_SHARE = 0.97
VERBATIM_KEYS = ("text_input", "messages", "payload")


class TraceError(ValueError):
    """The trace cannot be replayed; the message names the line."""


@dataclass(frozen=True)
class TraceRow:
    """One request of a trace. ``at_s`` is None in a trace without a schedule."""

    at_s: float | None
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


def _whole(row: Mapping[str, Any], name: str, line: int, least: int) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TraceError(
            f"Line {line} of the trace has {name} {value!r}; it must be a whole number of {least} or more."
        )
    return value


def parse_trace(lines: Iterable[str]) -> list[TraceRow]:
    """Return the requests of a trace in the order of their times, the first one at 0.

    Raises:
        TraceError: a line is no request, or only some lines have a timestamp.
    """
    rows: list[TraceRow] = []
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise TraceError(f"Line {line} of the trace is no JSON: {error}.") from error
        if not isinstance(row, Mapping):
            raise TraceError(f"Line {line} of the trace is no object.")
        verbatim = [key for key in VERBATIM_KEYS if key in row]
        if verbatim:
            raise TraceError(
                f"Line {line} of the trace has {verbatim[0]}; only requests given by their lengths are replayed here. "
                "AIPerf replays the others: install it and set bench_aiperf=require."
            )
        hashes = row.get("hash_ids") or []
        if not isinstance(hashes, list) or any(isinstance(each, bool) or not isinstance(each, int) for each in hashes):
            raise TraceError(f"Line {line} of the trace has hash_ids {hashes!r}; it must be a list of whole numbers.")
        at = row.get("timestamp")
        if at is not None and (isinstance(at, bool) or not isinstance(at, (int, float)) or at < 0):
            raise TraceError(f"Line {line} of the trace has timestamp {at!r}; it must be milliseconds from 0 on.")
        input_tokens, output_tokens = _whole(row, "input_length", line, 1), _whole(row, "output_length", line, 1)
        rows.append(TraceRow(None if at is None else at / 1000, input_tokens, output_tokens, tuple(hashes)))
    if not rows:
        raise TraceError("The trace has no request.")
    timed = [row.at_s for row in rows if row.at_s is not None]
    if timed and len(timed) != len(rows):
        raise TraceError(f"{len(timed)} of {len(rows)} requests of the trace have a timestamp: all must, or none.")
    if timed:
        first = min(timed)
        rows = [
            TraceRow((row.at_s or 0.0) - first, row.input_tokens, row.output_tokens, row.hash_ids)
            for row in sorted(rows, key=lambda row: row.at_s or 0.0)
        ]
    return rows


def shared_share(rows: Sequence[TraceRow]) -> float:
    """Return the share of blocks that an earlier request's prompt began with too: the most that a cache can find."""
    seen: set[tuple[int, ...]] = set()
    blocks = hits = 0
    for row in rows:
        prefixes = [row.hash_ids[: length + 1] for length in range(len(row.hash_ids))]
        blocks += len(prefixes)
        hits += sum(prefix in seen for prefix in prefixes)
        seen.update(prefixes)
    return hits / blocks if blocks else 0.0


def trace_prompt(
    row: TraceRow, number: int, words_per_token: float, block_tokens: int = BLOCK_TOKENS
) -> Callable[[int, str], str]:
    """Return what builds the prompt of a request: (words, tail) → text, whose blocks begin it and are cut at ``words``.

    The last block is this request's own, as long as is needed: the one before it is the last that others may share.
    """
    block_words = max(1, int(block_tokens * words_per_token * BLOCK_SHARE))
    blocks: dict[int, list[str]] = {}

    def build(words: int, tail: str) -> str:
        parts: list[str] = []
        for each in row.hash_ids[:-1]:
            if len(parts) >= words:
                break
            if each not in blocks:
                blocks[each] = filler(f"block {each}", block_words)
            parts += blocks[each]
        if len(parts) < words:
            parts += filler(f"request {number}", words - len(parts))
        return f"{' '.join(parts[:words])}{tail}\n\n{CONTINUE}"

    return build


def aiperf_command(  # one argument for each option of AIPerf
    *,
    program: str,
    model: str,
    tokenizer: str,
    trace: str,
    url: str,
    artifacts: str,
    concurrency: int,
    requests: int,
    block_tokens: int = BLOCK_TOKENS,
    scheduled: bool = False,
) -> list[str]:
    """Return the command that replays a trace with AIPerf, with the options of the published replays [S3]."""
    timing = ["--fixed-schedule"] if scheduled else ["--concurrency", str(concurrency), "--random-seed", "42"]
    if not scheduled:
        # AIPerf's own default is ten requests or twice the concurrency, whatever the length of the trace.
        timing += ["--request-count", str(requests), "--dataset-sampling-strategy", "sequential"]
    return [
        *(program, "profile", "-m", model, "--tokenizer", tokenizer, "--tokenizer-trust-remote-code"),
        *("--input-file", trace, "--custom-dataset-type", "mooncake_trace"),
        *("--prompt-input-tokens-block-size", str(block_tokens), "--url", url, "--endpoint-type", "chat"),
        *("--streaming", "--use-server-token-count", "--extra-inputs", "ignore_eos:true"),
        *timing,
        *("--artifact-dir", artifacts, "--ui", "none"),
    ]


AIPERF_FIGURES = {
    "request_count": "requests",
    "error_request_count": "failed",
    "time_to_first_token": "ttft",
    "inter_token_latency": "inter_token_latency",
    "request_latency": "latency",
    "output_token_throughput": "output_tokens_per_s",
    "output_token_throughput_per_user": "user_tokens_per_s",
    "request_throughput": "requests_per_s",
    "input_sequence_length": "input_tokens",
    "output_sequence_length": "output_tokens",
}


def parse_aiperf(text: str) -> dict[str, dict[str, Any]]:
    """Return AIPerf's figures from its profile_export_aiperf.json: by name, unit, avg, p50, p90, p99.

    Raises:
        TraceError: the file is no such export.
    """
    try:
        export = json.loads(text)
    except ValueError as error:
        raise TraceError(f"AIPerf's export is no JSON: {error}.") from error
    found = {}
    for theirs, ours in AIPERF_FIGURES.items():
        block = export.get(theirs) if isinstance(export, Mapping) else None
        if isinstance(block, Mapping) and "unit" in block:
            found[ours] = {key: block[key] for key in ("unit", "avg", "p50", "p90", "p99") if key in block}
    if "ttft" not in found:
        raise TraceError(
            "AIPerf's export holds no time_to_first_token: no request was answered, or its form has changed."
        )
    return found
