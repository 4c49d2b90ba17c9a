# SPDX-License-Identifier: Apache-2.0
"""Keep an idle GPU computing for a moment, in a container of an engine image: a clock is judged only under load."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node.gpu import SMI_QUERY, busiest, parse_smi

CONTAINER = "gb10-gpu-load"
#: Multiplies matrices of 32 MiB, says when the first products are done, and ends by itself if nobody ends it.
PROGRAM = """
import time, torch
a = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
end = time.monotonic() + 60
while time.monotonic() < end:
    for _ in range(50):
        torch.mm(a, a)
    torch.cuda.synchronize()
    print("busy", flush=True)
"""
#: Until torch is imported and the GPU computes; the file system may be cold.
SILENCE_S = 180.0
SMI_SAMPLES = 4


def sample_gpu(run: Callable[..., str], interval_seconds: float) -> tuple[dict[str, Any], str]:
    """Return the busiest of a few looks at the GPU's clock, load and power, and what nvidia-smi printed instead.

    :param run: runs a command and returns what it printed
    """
    samples: list[dict[str, Any]] = []
    text = ""
    for number in range(SMI_SAMPLES):
        text = run("nvidia-smi", f"--query-gpu={SMI_QUERY}", "--format=csv,noheader,nounits")
        samples.append(parse_smi(text))
        if not samples[-1]:
            break
        if number + 1 < SMI_SAMPLES:
            time.sleep(interval_seconds)
    found = busiest(samples)
    return found, "" if found else " ".join(text.split())


def load_command(image: str, gpu_args: Sequence[str]) -> list[str]:
    """Return the command that runs the load; it fetches nothing and has no network."""
    names = ["--rm", "--name", CONTAINER, "--pull", "never", "--network", "none", "--memory", "8g"]
    return ["docker", "run", *names, *gpu_args, "--entrypoint", "python3", image, "-c", PROGRAM]


@contextmanager
def loaded(command: Sequence[str], silence_seconds: float = SILENCE_S) -> Iterator[str]:
    """Run the load while the block runs; yields why there is none, or an empty text once the GPU computes.

    Without a command the block runs without a load.
    """
    if not command:
        yield ""
        return
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    except OSError as error:
        yield f"{command[0]}: {error.strerror}"
        return
    assert process.stdout is not None
    try:
        printed = b""
        while b"busy\n" not in printed:
            if not select.select([process.stdout], [], [], silence_seconds)[0]:
                break
            more = os.read(process.stdout.fileno(), 65536)
            if not more:
                break
            printed += more
        lines = printed.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"nothing for {silence_seconds:.0f} s")
        yield "" if b"busy\n" in printed else f"the load in {CONTAINER} printed: {last}"
    finally:
        process.stdout.close()
        # The client's end does not end the container.
        subprocess.run(["docker", "rm", "--force", CONTAINER], check=False, capture_output=True)
        process.kill()
        process.wait()
