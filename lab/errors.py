# SPDX-License-Identifier: Apache-2.0
"""The one exception that the lab raises for a condition that its user can act on."""

from __future__ import annotations


class LabError(Exception):
    """A sentence for the user: what was found, where, and what to do about it."""
