# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vLLM: its command line, log lines, endpoints and exits, and no model behind them.

It exists for tests of what starts, watches and stops an engine.  It loads no weights and computes nothing.
"""

from __future__ import annotations

__version__ = "0.32.0+cpu"
STAND_IN = "gb10-lab-stand-in"
