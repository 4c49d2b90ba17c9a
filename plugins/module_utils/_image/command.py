# SPDX-License-Identifier: Apache-2.0
"""Distribute an engine image: the `image` verb of the node's program.

    image serve --config FILE --port PORT           the head's registry, until it is stopped or nobody uses it any more
    image pull --source A:P/NAME@DIGEST             this node's Docker Engine pulls what it is missing

The registry is the distribution's package; the engine itself decides what it is missing, whatever its version.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image.pull import pull
from ansible_collections.gb10.cluster.plugins.module_utils._image.serve import serve


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("serve")
    verb.add_argument("--config", required=True)
    verb.add_argument("--port", type=int, required=True)
    verb = verbs.add_parser("pull")
    verb.add_argument("--source", required=True)
    verb.add_argument("--layers", default="", help="DIGITS:BYTES of each layer, with commas between them")
    verb.add_argument("--status", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "serve":
        return serve(args.config, args.port)
    pairs = (pair.split(":") for pair in args.layers.split(",") if pair)
    return pull(args.source, {digits: int(count) for digits, count in pairs}, args.status)
