# SPDX-License-Identifier: Apache-2.0
"""Makes the stand-in's wheel: the modules ``vllm`` and ``ray``, their commands, and vLLM's options as a table."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Final

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_files import load_tables
from lab.standin.vllm import STAND_IN, __version__

HERE: Final = Path(__file__).resolve().parent
NAME: Final = f"vllm-{__version__}-py3-none-any.whl"
_INFO: Final = f"vllm-{__version__}.dist-info"


def wheel_files() -> dict[str, bytes]:
    """Return name → content of all that the wheel holds, but its RECORD."""
    files = {
        f"{package}/{path.name}": path.read_bytes()
        for package in ("vllm", "ray")
        for path in sorted((HERE / package).glob("*.py"))
    }
    # The file of this version may hold no more than what differs from another's.
    files["vllm/options.json"] = json.dumps(load_tables()[__version__], indent=1, sort_keys=True).encode()
    files[f"{_INFO}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {__version__}\n"
        f"Summary: {STAND_IN}: plays vLLM's and Ray's commands for tests and runs no model\n"
    ).encode()
    files[f"{_INFO}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: lab.standin\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{_INFO}/entry_points.txt"] = b"[console_scripts]\nvllm = vllm.cli:main\nray = ray.scripts:main\n"
    return files


def make_wheel(dest: Path) -> Path:
    """Make the wheel in a directory, byte for byte the same from the same sources, and return its path."""
    files = wheel_files()
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{_INFO}/RECORD"] = (record + f"{_INFO}/RECORD,,\n").encode()
    dest.mkdir(parents=True, exist_ok=True)
    temporary = dest / f".{NAME}.{os.getpid()}"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    target = dest / NAME
    if target.is_file() and target.read_bytes() == temporary.read_bytes():
        temporary.unlink()
    else:
        temporary.replace(target)
    return target
