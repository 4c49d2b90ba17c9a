# SPDX-License-Identifier: Apache-2.0
"""The stand-in engine: for tests of what starts, watches and swaps engines, where no model is needed.

``python -m lab.standin [DEST]`` makes its wheel, which an image of a test installs in vLLM's place.
"""

from __future__ import annotations
