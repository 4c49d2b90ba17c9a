# SPDX-License-Identifier: Apache-2.0
"""What the check inside the image (`_engine.check`) answered, and what to report of it.  Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._engine.check import MARK
from ansible_collections.gb10.cluster.plugins.module_utils._probe.diagnosis import UNRECOGNISED, diagnose
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine

#: vLLM lists everything that it would have taken, several thousand characters for an architecture.
MAX_WORDS_CHARS = 320

_STAGES = {
    "parse": "its command line does not take these options",
    "parsers": "it knows no such parser",
    "config": "its own configuration check refuses it",
}


class NoVerdictError(Exception):
    """The check gave no verdict; the message has what it printed."""


def parse(stdout: str, stderr: str, code: int) -> dict[str, Any]:
    """Return the verdict that the check printed: ``ok``, ``stage``, ``error`` and what the engine would do.

    :raises NoVerdictError: when there is none, with the end of what the container printed.
    """
    for line in reversed(stdout.splitlines()):
        if line.startswith(MARK):
            verdict: dict[str, Any] = json.loads(line[len(MARK) :])
            if code == 2:
                raise NoVerdictError(f"this vLLM cannot be asked ({verdict['error']})")
            return verdict
    last = [line for line in (stderr or stdout).splitlines() if line.strip()][-3:]
    if code == 137:
        last.append("exit code 137 is a kill: the memory that engine_check_docker_args allow was too little")
    raise NoVerdictError(f"the container ended with exit code {code} and no verdict: {' | '.join(last) or 'no output'}")


def vllm_words(error: str) -> str:
    """Return vLLM's sentence on one line, without pydantic's frame, cut where it lists all that it knows."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    text = " ".join(lines).split(" [type=", 1)[0].removeprefix("Value error, ").strip().strip("'\"")
    return text if len(text) <= MAX_WORDS_CHARS else text[:MAX_WORDS_CHARS].rsplit(" ", 1)[0] + " …"


def refusal(model: str, image: str, verdict: Mapping[str, Any]) -> str:
    """Return the complete message for a refused configuration: vLLM's own sentence, then ours."""
    words = vllm_words(str(verdict["error"]))
    known = [each for each in diagnose([LogLine(text=words)]) if each.name != UNRECOGNISED]
    ours = (
        f"{known[0].cause} {known[0].remedy}"
        if known
        else f"Change model_spec.serve or model_spec.env of {model} so that this vLLM takes it."
    )
    stage = _STAGES.get(str(verdict["stage"]), "it refuses the configuration")
    return f"{image} would not start {model}: {stage}.\n  vLLM says: {words}\n  {ours}\nNothing was stopped or changed."


def digest(image_identity: str, argv: Sequence[str], env: Mapping[str, str], program: str) -> str:
    """Return the name under which an accepted configuration is remembered, so that it is asked about once."""
    asked = json.dumps([image_identity, list(argv), dict(sorted(env.items())), program], separators=(",", ":"))
    return hashlib.sha256(asked.encode()).hexdigest()[:24]
