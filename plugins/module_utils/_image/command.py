# SPDX-License-Identifier: Apache-2.0
"""Distribute an engine image layer by layer: the `image` verb of the node's program.

    image export --image TAG --store DIR                     layers of TAG into DIR, compressed
    image offer --image TAG --store DIR --listen A:P         DIR for other nodes, until stopped
    image pull --image TAG --source URL --spool DIR          what this node is missing, from an offer
    image archive --image TAG --store DIR --file FILE        TAG from DIR as an OCI archive; options as JSON on stdin
    image import --image TAG --store DIR FILE...             TAG from OCI archives into DIR, the image's own first

The head's store holds each layer once, under its diff id, and one manifest per image.  Layers are read where Docker
keeps them (overlay2 with its tar-split files), which avoids the temporary copy of `docker save` and the gzip of
`docker push`; every other storage driver goes through `docker save`.  A pulling node fetches the compressed layers that
its Docker Engine asks for, resumably and verified, and hands them over decompressed as a registry on 127.0.0.1: the
engine itself decides what is missing, whatever its version.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image.archive import import_archives, write_archive
from ansible_collections.gb10.cluster.plugins.module_utils._image.export import export
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import (
    ImageError,
    manifest_from_json,
    tag_file,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.offer import (
    IDLE_SECONDS,
    OfferServer,
    UnusedOfferError,
)
from ansible_collections.gb10.cluster.plugins.module_utils._image.pull import pull
from ansible_collections.gb10.cluster.plugins.module_utils._image.store import file_sha256


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code; the manifest of an export goes to standard output as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("export")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--level", type=int, default=1)
    verb.add_argument("--read", choices=["auto", "overlay2", "save"], default="auto")
    verb = verbs.add_parser("offer")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--listen", required=True)
    verb.add_argument("--allow", default="")
    verb.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    verb = verbs.add_parser("pull")
    verb.add_argument("--image", required=True)
    verb.add_argument("--source", required=True)
    verb.add_argument("--transport", choices=["layers", "tarball"], default="layers")
    verb.add_argument("--spool", type=Path, required=True)
    verb.add_argument("--status", type=Path)
    verb = verbs.add_parser("archive")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--file", type=Path, required=True)
    verb = verbs.add_parser("import")
    verb.add_argument("--image", required=True)
    verb.add_argument("--store", type=Path, required=True)
    verb.add_argument("--level", type=int, default=1)
    verb.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args(argv)
    try:
        if args.verb == "export":
            print(export(args.image, args.store, args.level, args.read).to_json())
        elif args.verb == "offer":
            host, _colon, port = args.listen.rpartition(":")
            allow = [address for address in args.allow.split(",") if address]
            with suppress(UnusedOfferError):
                OfferServer((host, int(port)), args.store, allow, args.image, args.idle_seconds).serve_forever()
        elif args.verb == "archive":
            options = json.loads(sys.stdin.read())
            manifest = manifest_from_json((args.store / "images" / tag_file(args.image)).read_text(encoding="utf-8"))
            write_archive(args.file, manifest, args.store / "layers", options["record"], options["shared"])
            print(json.dumps({"bytes": args.file.stat().st_size, "sha256": file_sha256(args.file)}))
        elif args.verb == "import":
            print(import_archives(args.files, args.image, args.store, args.level).to_json())
        else:
            return pull(args.image, args.source, args.transport, args.spool, args.status)
    except (ImageError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0
