# SPDX-License-Identifier: Apache-2.0
"""Let the vLLM of an image parse a ``vllm serve`` command and build its configuration, without weights or a GPU.

Runs inside the image, with the command and its environment as one JSON object on standard input:
``{"argv": ["vllm", "serve", MODEL, ...], "env": {NAME: VALUE}}``.  The last line that it prints is
``gb10-engine-check`` and a JSON object: ``ok``, ``stage`` (``parse``, ``parsers`` or ``config``) and ``error``,
vLLM's own words.  Exit code 0 when accepted, 1 when refused, 2 when this vLLM cannot be asked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

#: Begins the line with the verdict.
MARK = "gb10-engine-check "

#: What vLLM writes to standard error; argparse says there why it leaves.
STDERR = io.StringIO()


def answer(code: int, **found: Any) -> NoReturn:
    """Print the verdict and leave at once: what vLLM started in the background has nothing left to do."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(STDERR.getvalue())
        sys.__stderr__.flush()
    print(MARK + json.dumps(found), flush=True)
    os._exit(code)


def words_of(error: BaseException) -> str:
    """Return what an exception says, without pydantic's addresses of its documentation."""
    lines = [line for line in str(error).splitlines() if "For further information visit" not in line]
    return "\n".join(lines).strip() or type(error).__name__


def manager(modules: list[str], name: str) -> Any:
    """Return a class from the first of the modules that exists in this version."""
    found = [module for module in modules if importlib.util.find_spec(module) is not None]
    return getattr(importlib.import_module(found[0]), name)


def build(args: Any) -> None:
    """Do what ``vllm serve`` does with parsed arguments, up to the engine's configuration."""
    if getattr(args, "model_tag", None):
        args.model = args.model_tag
    try:
        if getattr(args, "tool_parser_plugin", None):
            manager(
                ["vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers"], "ToolParserManager"
            ).import_tool_parser(args.tool_parser_plugin)
        if getattr(args, "reasoning_parser_plugin", None):
            manager(["vllm.reasoning"], "ReasoningParserManager").import_reasoning_parser(args.reasoning_parser_plugin)
        server = importlib.import_module("vllm.entrypoints.openai.api_server")
        if hasattr(server, "validate_api_server_args"):
            server.validate_api_server_args(args)
    except Exception as error:  # noqa: BLE001 - whatever it is, the real start would meet it too
        traceback.print_exc()
        answer(1, ok=False, stage="parsers", error=words_of(error))
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found, unused-ignore]

        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        answer(1, ok=False, stage="config", error=words_of(error))
    answer(
        0,
        ok=True,
        stage="config",
        error="",
        architecture=list(getattr(config.model_config, "architectures", None) or []),
        max_model_len=config.model_config.max_model_len,
    )


def main(argv: Sequence[str]) -> None:
    """Run vLLM's own command line with ``serve`` ending in `build` instead of an engine."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    asked = json.load(sys.stdin)
    os.environ.update(asked["env"])
    sys.argv = list(asked["argv"])
    try:
        serve = importlib.import_module("vllm.entrypoints.cli.serve")
        cli = importlib.import_module("vllm.entrypoints.cli.main")
        serve.ServeSubcommand.cmd = staticmethod(build)
    except (ImportError, AttributeError) as error:
        answer(2, ok=False, stage="import", error=words_of(error))
    try:
        with contextlib.redirect_stderr(STDERR):
            cli.main()
    except SystemExit:
        lines = [line for line in STDERR.getvalue().splitlines() if line.strip()]
        answer(1, ok=False, stage="parse", error=lines[-1] if lines else "vllm serve ended without output")
    except Exception as error:  # noqa: BLE001
        traceback.print_exc(file=STDERR)
        answer(1, ok=False, stage="parse", error=words_of(error))
    answer(2, ok=False, stage="parse", error="vllm serve was not reached: is the second word of the command `serve`?")
