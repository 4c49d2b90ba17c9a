# SPDX-License-Identifier: Apache-2.0
"""Let the proxy in front of the API follow the engine that was committed or rolled back, on the head alone.

Role edge writes the proxy's configuration for the engine that serves and, before another one is started at other ports,
one for that beside it.  Which of the two counts follows from the record of the engine, so whoever writes the record on
the node, the control node's module or the swap's guard, moves the proxy as well.  Standard library only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files

UNIT = "gb10-edge.service"
CONF_DIR = Path("/etc/gb10/edge")
#: Begins the line of a configuration that names its engine, in roles/edge/templates/nginx.conf.j2.
MARK = "# For the engine on port "


def mark(record: Mapping[str, Any]) -> str:
    """Return the line of the configuration that leads to an engine.

    :param record: its active record.
    """
    return f"{MARK}{record.get('api_port', 0)} with proxy_port {record.get('proxy_port', 0)}."


@dataclass(frozen=True)
class Proxy:
    """The proxy of a node; does nothing on one that has none.

    :param units_dir: where the proxy's unit is.
    :param conf_dir: where its configurations are.
    """

    run: Callable[[list[str]], tuple[int, str, str]]
    units_dir: Path
    conf_dir: Path = CONF_DIR

    def prepare(self, record: Mapping[str, Any]) -> str:
        """Put the configuration for an engine in place, or free the engine's port; call it before the engine's start.

        :param record: the engine's; empty when none serves, which leaves the proxy as it is.
        :returns: the verb of systemctl that `follow` needs; empty when the proxy stays as it is.
        :raises OSError: as the operating system reports it.
        """
        if not record or not (self.units_dir / UNIT).exists():
            return ""
        present, coming = self._text("nginx.conf"), self._text("next.conf")
        if mark(record) in coming.splitlines():
            files.write(self.conf_dir / "nginx.conf", coming)
            return "restart"
        if mark(record) in present.splitlines():
            return "start"
        if MARK in present:
            self.run(["systemctl", "disable", "--now", UNIT])
        return ""

    def follow(self, verb: str) -> None:
        """Run the proxy with the configuration that `prepare` put in place, now and after a boot.

        What systemd refuses is reported by the next run and shown by the watch; the engine serves all the same.
        """
        if not verb:
            return
        self.run(["systemctl", "enable", "--quiet", UNIT])
        self.run(["systemctl", verb, UNIT])
        if verb == "restart":
            files.remove(self.conf_dir / "next.conf")

    def _text(self, name: str) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.conf_dir / name).read_text(encoding="utf-8")
        return ""
