# SPDX-License-Identifier: Apache-2.0
"""Pull an image from an offer into this node's Docker Engine."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from ansible_collections.gb10.cluster.plugins.module_utils._image import engine
from ansible_collections.gb10.cluster.plugins.module_utils._image.fetch import Fetcher, get_manifest, pull_tarball
from ansible_collections.gb10.cluster.plugins.module_utils._image.layout import ImageError
from ansible_collections.gb10.cluster.plugins.module_utils._image.progress import Progress
from ansible_collections.gb10.cluster.plugins.module_utils._image.registry import RegistryServer


def pull_layers(tag: str, source: str, spool: Path, progress: Progress) -> str:
    """Pull an image layer by layer; return the name under which the engine holds it now.

    :raises ImageError: a layer cannot be fetched, or the Docker Engine aborted the pull.
    """
    manifest = get_manifest(source, tag)
    fetcher = Fetcher(manifest, source, spool, progress)
    root = Path(engine.docker("info", "--format", "{{.DockerRootDir}}").strip())
    server = RegistryServer(manifest, fetcher, root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name, _colon, mark = tag.rpartition(":")
    remote = f"127.0.0.1:{server.server_address[1]}/{name}"
    progress.phase = "layers"
    events = engine.EngineEvents(manifest, progress, fetcher.forget, frozenset(server.held))
    try:
        for event in engine.engine_pull(remote, mark):
            if server.problems:  # the engine would ask again and again
                raise ImageError(f"The pull of {tag} was aborted.")
            events.take(event)
    except ImageError as problem:
        raise ImageError(" ".join([*dict.fromkeys(server.problems), str(problem)])) from problem
    finally:
        server.shutdown()
    shutil.rmtree(spool)
    return f"{remote}:{mark}"


def pull(tag: str, source: str, transport: str, spool: Path, status: Path | None) -> int:
    """Pull an image and write its progress to a file every second; return the exit code."""
    progress = Progress(status)
    over = threading.Event()

    def report() -> None:
        while not over.wait(1):
            progress.write()

    reporter = threading.Thread(target=report)
    progress.write()
    reporter.start()
    try:
        if transport == "layers":
            progress.name = pull_layers(tag, source, spool, progress)
        else:
            progress.name = pull_tarball(tag, source, progress)
    except ImageError as problem:
        progress.error = str(problem)
    except Exception as problem:
        progress.error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        over.set()
        reporter.join()
        progress.done = True
        progress.write()
    print(progress.error or f"pulled {progress.name}: {progress.received} bytes received", flush=True)
    return 1 if progress.error else 0
