# SPDX-License-Identifier: Apache-2.0
"""The host's own Debian or Ubuntu sources, read so that nodes can be made from the same mirror.

Pure functions over file texts; both formats of sources.list(5) are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lab.errors import LabError

_SUFFIXES = ("", "-updates", "-security", "/updates")
_KEEP_OPTIONS = ("signed-by", "trusted", "arch")


@dataclass(frozen=True)
class Source:
    """One archive: where it is, which suite, which components, and its options."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """Return the entry in the one-line format."""
        words = " ".join(f"{key}={value}" for key, value in self.options)
        return " ".join(["deb", *([f"[{words}]"] if words else []), self.uri, self.suite, *self.components])


def parse_list(text: str) -> Iterator[Source]:
    """Yield the binary sources of a ``*.list`` file."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line.startswith("deb") or line.startswith("deb-src"):
            continue
        rest = line.removeprefix("deb").strip()
        options: list[tuple[str, str]] = []
        if rest.startswith("["):
            inside, _unused, rest = rest[1:].partition("]")
            for word in inside.split():
                key, _unused, value = word.partition("=")
                options.append((key.lower(), value))
        words = rest.split()
        if len(words) >= 2:
            kept = tuple(pair for pair in options if pair[0] in _KEEP_OPTIONS)
            yield Source(words[0], words[1], tuple(words[2:]), kept)


def parse_deb822(text: str) -> Iterator[Source]:
    """Yield the enabled binary sources of a ``*.sources`` file, one for each URI and suite."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in paragraph.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            else:
                name, _unused, value = line.partition(":")
                key = name.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        signed_by = fields.get("signed-by", "")
        if "\n" in signed_by:  # a key written into the file; the one-line format has no place for it
            continue
        options: list[tuple[str, str]] = []
        if signed_by:
            options.append(("signed-by", ",".join(signed_by.split())))
        if fields.get("trusted"):
            options.append(("trusted", fields["trusted"]))
        if fields.get("architectures"):
            options.append(("arch", ",".join(fields["architectures"].split())))
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components, tuple(options))


def parse_files(files: Iterable[tuple[str, str]]) -> list[Source]:
    """Return the sources of files given as (name, text)."""
    sources: list[Source] = []
    for name, text in files:
        sources += parse_deb822(text) if name.endswith(".sources") else parse_list(text)
    return sources


def _of_the_distribution(source: Source) -> bool:
    """Return whether an archive is the distribution's own, not a third party's with the same suite name."""
    if "main" not in source.components:
        return False
    for key, value in source.options:
        if key == "signed-by":
            names = [PurePosixPath(path).name for path in value.split(",")]
            return all(name.startswith(("debian-archive", "ubuntu-archive")) for name in names)
    return True


def select(sources: Iterable[Source], codename: str, where: str) -> list[Source]:
    """Return the distribution's own sources of release ``codename``.

    where: what was read, for the message. Raises LabError when the release's main archive is not
    among them.
    """
    suites = {codename + suffix for suffix in _SUFFIXES}
    chosen: list[Source] = []
    for source in sources:
        if source.suite in suites and _of_the_distribution(source) and source not in chosen:
            chosen.append(source)
    if not any(source.suite == codename for source in chosen):
        raise LabError(
            f"No archive of the release {codename!r} was found in {where}, so there is nothing to "
            "make nodes from. Add the distribution's own archive there, name a file of sources with "
            "--apt-sources, or use --base-image where a registry can be reached."
        )
    return chosen


def isolated(work: Path, **settings: str) -> list[str]:
    """Return the options with which apt-get keeps to a directory: its ``sources.list``, ``state`` and ``cache``.

    :param settings: further settings, with ``__`` for the ``::`` in their names.
    """
    own = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "state/lists",
        "Dir::Cache": work / "cache",
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    more = {key.replace("__", "::"): value for key, value in settings.items()}
    return [word for key, value in {**own, **more}.items() for word in ("-o", f"{key}={value}")]
