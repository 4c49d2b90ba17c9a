# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m lab.standin [DEST]`` makes the wheel."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.standin.wheel import make_wheel

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the wheel of the stand-in engine.")
    parser.add_argument("dest", nargs="?", type=Path, default=Path(".lab/standin"), help="default: .lab/standin")
    print(make_wheel(parser.parse_args().dest))
