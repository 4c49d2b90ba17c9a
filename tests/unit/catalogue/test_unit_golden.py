# SPDX-License-Identifier: Apache-2.0
"""The unit of a rank as it is rendered, word for word: what its container may do is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("unit.service")
MODEL = "nemotron-nano"
#: What changes with every change of the code or the image.
DIGESTS = ((r"gb10-engine-[0-9a-f]{12}", "gb10-engine-DIGEST"), (r"(?<=[/:])[0-9a-f]{12}\b", "FINGERPRINT"))


def rendered_unit(rendered: Callable[[str], Any]) -> str:
    """Return the unit of the head's rank without digests, up to the options of vLLM."""
    folder = rendered(MODEL)[0] / "gx10-1"
    text = (folder / "etc" / "systemd" / "system" / f"vllm-{MODEL}.service").read_text(encoding="utf-8")
    for pattern, word in DIGESTS:
        text = re.sub(pattern, word, text)
    # The options have tests of their own.
    return re.sub(r"(?<=\n  vllm \\\n  serve \\\n)(?:  .*\\\n)*  .*\n", "  OPTIONS\n", text)


def test_the_unit_is_the_golden_one(rendered: Callable[[str], Any]) -> None:
    assert rendered_unit(rendered) == GOLDEN.read_text(encoding="utf-8")


def test_the_container_has_one_capability_and_gains_none(rendered: Callable[[str], Any]) -> None:
    words = rendered_unit(rendered).replace("\\\n", " ").split()
    given = [word for word in words if word.startswith(("--cap", "--security-opt", "--privileged", "--pid", "--ipc"))]
    assert given == ["--cap-drop=ALL", "--cap-add=IPC_LOCK", "--security-opt=no-new-privileges"]


def test_no_two_models_share_a_cache(rendered: Callable[[str], Any]) -> None:
    words = rendered_unit(rendered).replace("\\\n", " ").split()
    mounts = [word for place, word in enumerate(words) if words[place - 1] == "--volume" and not word.endswith(":ro")]
    assert mounts
    assert all(f"/{MODEL}" in mount for mount in mounts)
