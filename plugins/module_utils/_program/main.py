# SPDX-License-Identifier: Apache-2.0
"""The first module of a program archive: runs one of its verbs.  Standard library only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

PACKAGE = "ansible_collections.gb10.cluster.plugins.module_utils"
USAGE_STATUS = 2


def main(verbs: Mapping[str, str], argv: Sequence[str] | None = None) -> None:
    """Run a verb and leave the process with its exit status.

    :param verbs: verb → module below module_utils (``_engine.entry``), whose ``main(argv)`` returns an exit status or
        None.  It is imported when its verb is run, not before.
    :param argv: the verb and its arguments; sys.argv's by default.
    :raises SystemExit: always; status 2 for a missing or unknown verb, else what the verb returned.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print("verbs, each with --help:")
        for verb, module in sorted(verbs.items()):
            summary = (importlib.import_module(f"{PACKAGE}.{module}").__doc__ or "").strip().partition("\n")[0]
            print(f"  {verb:<10} {summary}")
        sys.exit(0)
    if not words or words[0] not in verbs:
        given = f"unknown verb {words[0]!r}" if words else "no verb was given"
        print(f"gb10: {given}; expected one of {', '.join(sorted(verbs))}", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    # What argparse shows as the program's name.
    sys.argv[0] = f"gb10 {words[0]}"
    sys.exit(importlib.import_module(f"{PACKAGE}.{verbs[words[0]]}").main(words[1:]))
