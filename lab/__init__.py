# SPDX-License-Identifier: Apache-2.0
"""Simulated GB10 nodes on one Linux host; ``python -m lab --help`` lists the verbs, docs/lab.md explains them."""

from __future__ import annotations
