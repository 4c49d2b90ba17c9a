# SPDX-License-Identifier: Apache-2.0
"""vLLM version strings: parsing, ordering by release, and the specifiers that mods use.

Images carry builds such as ``0.22.1rc1.dev124+gace95c9cf.d20260603.cu132``: setuptools-scm
names a commit after the release that it leads up to.  What matters for options and patches is
that release, so everything here compares the release numbers and leaves ``rc``, ``dev``,
``post`` and the local part aside; a manifest that needs one exact build names it in full.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(
    r"^v?(?P<release>\d+(?:\.\d+)+)"
    r"(?P<pre>[-_.]?(?:a|b|rc)\d+)?(?P<post>[-_.]?post\d+)?(?P<dev>[-_.]?dev\d+)?"
    r"(?:\+(?P<local>[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*))?$"
)
_CLAUSE = re.compile(r"^(?P<op>==|!=|>=|<=|>|<)?\s*(?P<version>\S+)$")


class VersionError(ValueError):
    """A version or a specifier that cannot be read; the text is a sentence for the operator."""


@dataclass(frozen=True)
class VllmVersion:
    """One version of vLLM.

    :ivar release: release numbers, padded to three, e.g. ``(0, 22, 1)``.
    :ivar is_release: False for a candidate or development build.
    :ivar local: what follows ``+``, e.g. ``cpu``; empty when absent.
    """

    text: str
    release: tuple[int, ...]
    is_release: bool
    local: str

    @property
    def base(self) -> str:
        """Return the release as text, e.g. ``0.22.1``."""
        return ".".join(str(part) for part in self.release)


def parse(text: str) -> VllmVersion:
    """Return the parsed version.

    :raises VersionError: when ``text`` is no vLLM version, for example an image tag.
    """
    match = _VERSION.match(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise VersionError(
            f"{text!r} is no vLLM version; expected something like 0.22.1, 0.32.0+cpu "
            "or 0.22.1rc1.dev124+gace95c9cf.d20260603.cu132."
        )
    release = tuple(int(part) for part in match["release"].split("."))
    return VllmVersion(
        text=text.strip(),
        release=release + (0,) * (3 - len(release)),
        is_release=not (match["pre"] or match["dev"]),
        local=match["local"] or "",
    )


def matches(specifier: str, version: VllmVersion) -> bool:
    """Return whether ``version`` lies in ``specifier``.

    :param specifier: comma-separated clauses, all of which must hold: ``==0.22.1``,
        ``==0.22.*``, ``>=0.32,<0.34``, ``!=0.32.1``, or a bare version.  A clause of the kind
        ``==`` or a bare one that carries a candidate, development or local part is compared
        with the full text; every other clause compares release numbers.
    :raises VersionError: when a clause cannot be read.
    """
    return all(_clause_holds(clause, version) for clause in _clauses(specifier))


def is_exact(specifier: str, version: VllmVersion) -> bool:
    """Return whether ``specifier`` names exactly this text, suffixes included."""
    return specifier.strip().removeprefix("==").strip() == version.text


def check_specifier(specifier: str) -> None:
    """Raise VersionError when ``specifier`` cannot be read."""
    matches(specifier, parse("0.0.0"))


def _clauses(specifier: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in specifier.split(",") if isinstance(specifier, str) else [""]:
        match = _CLAUSE.match(part.strip())
        if match is None:
            raise VersionError(
                f"{specifier!r} is no version specifier; expected for example '==0.22.1', '==0.22.*' or '>=0.32,<0.34'."
            )
        found.append((match["op"] or "==", match["version"]))
    return found


def _clause_holds(clause: tuple[str, str], version: VllmVersion) -> bool:
    op, text = clause
    if text.endswith(".*"):
        if op not in ("==", "!="):
            raise VersionError(f"'{op}{text}' is no version specifier: '.*' goes with == and !=.")
        # A lone number has no dot for parse(); '0.*' means every 0.x.
        prefix = tuple(int(part) for part in text[:-2].split(".") if part.isdigit())
        if ".".join(str(part) for part in prefix) != text[:-2]:
            raise VersionError(f"'{op}{text}' is no version specifier; expected e.g. '==0.22.*'.")
        return (version.release[: len(prefix)] == prefix) is (op == "==")
    wanted = parse(text)
    if op in ("==", "!="):
        suffixed = not wanted.is_release or wanted.local
        same = wanted.text == version.text if suffixed else wanted.release == version.release
        return same is (op == "==")
    left, right = version.release, wanted.release
    return {">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right}[op]
