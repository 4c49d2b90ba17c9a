# SPDX-License-Identifier: Apache-2.0
"""Make what a model needs beside its weights, by a command in its image."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

OUTPUT = "/gb10-output"
#: How often the progress of the command is read.
LOOK_SECONDS = 2.0


def container_name(repo: str) -> str:
    return f"gb10-prepare-{repo.rpartition('/')[2]}"


def command_line(want: dict[str, Any], output: Path) -> list[str]:
    """Return the command that makes the data into a directory."""
    line = ["docker", "run", "--rm", "--name", container_name(want["repo"]), "--network", "none", *want["docker_args"]]
    for source, target in want["mounts"].items():
        line += ["--volume", f"{source}:{target}:ro"]
    for name, value in sorted(want["env"].items()):
        line += ["--env", f"{name}={value}"]
    first, *rest = want["command"]
    return [*line, "--volume", f"{output}:{OUTPUT}", "--entrypoint", first, want["image"], *rest]


def make(want: dict[str, Any], output: Path) -> str:
    """Run the command; return what is wrong with how it ended, or an empty string."""
    name = container_name(want["repo"])
    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command_line(want, output), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        seen, moved_at = (-1, -1), time.monotonic()
        while True:
            try:
                code = process.wait(LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                now = (files.used_bytes(output), log.seek(0, 2))
                if now != seen:
                    seen, moved_at = now, time.monotonic()
                elif time.monotonic() - moved_at > want["stall_seconds"]:
                    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
                    process.kill()
                    process.wait()
                    return f"it wrote neither data nor output for {want['stall_seconds']} s and was ended"
        log.seek(max(0, log.seek(0, 2) - 1500))
        said = log.read().decode("utf-8", "replace").strip()
    if code != 0:
        return f"it ended with exit code {code}: {said or 'without output'}"
    if not files.used_bytes(output):
        return f"it ended well and has written nothing below {OUTPUT}: {said or 'without output'}"
    return ""
