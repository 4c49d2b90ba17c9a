# SPDX-License-Identifier: Apache-2.0
"""Looks at the monitor's page in headless Chromium; ends with an error when something on it is empty or went wrong.

    look_at_page.py URL [--node NAME ...] [--alert NAME ...] [--served NAME] [--screenshot FILE]

Chromium comes from the distribution: it is installed when it is missing and this is root on Debian, or GB10_CHROMIUM
names another one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-proxy-server",
)  # fmt: skip
#: Until when the page's clock runs: two rounds of its questions.
BUDGET_MS = 15000
PANELS = 12
SIZE = (1320, 1330)


def browser() -> str:
    """Return the path of Chromium, installed when it is missing."""
    given = os.environ.get("GB10_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.geteuid() or not shutil.which("apt-get"):
        sys.exit("There is no Chromium here: install the distribution's package, or name one with GB10_CHROMIUM.")
    install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", "chromium"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(install, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        subprocess.run(["apt-get", "-qq", "update"], check=False, capture_output=True)
        done = subprocess.run(install, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"Chromium is missing and could not be installed: {done.stderr.strip()[-500:]}")
    return browser()


def visit(url: str, *more: str) -> str:
    """Open the page, let it ask, and return what the browser prints."""
    with tempfile.TemporaryDirectory(prefix="gb10-browser-") as profile:
        command = [
            browser(), *FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--virtual-time-budget={BUDGET_MS}", *more, url,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"Chromium ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


class Page(HTMLParser):
    """What the page's own marks say, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.rounds = 0
        self.panels: dict[str, int] = {}
        self.lines: list[str] = []
        self.nodes: list[str] = []
        self.tiles: list[str] = []
        self.alerts: list[str] = []
        self.words: list[str] = []
        self.hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the marks of one element."""
        marks = {key: value or "" for key, value in attrs}
        self.hidden = int(tag in ("script", "style"))
        if tag == "body":
            self.errors = json.loads(marks.get("data-errors", '["the page has not run"]'))
            self.rounds = int(marks.get("data-rounds", "0"))
        if "data-panel" in marks:
            self.panels[marks["data-panel"]] = int(marks.get("data-points", "0"))
        if tag == "path" and marks.get("class") == "series":
            self.lines.append(marks.get("d", ""))
        for mark, kept in (("data-node", self.nodes), ("data-tile", self.tiles), ("data-alert", self.alerts)):
            if mark in marks:
                kept.append(marks[mark])

    def handle_data(self, data: str) -> None:
        """Keep text that is shown."""
        if not self.hidden and data.strip():
            self.words.append(data.strip())


def faults(page: Page, nodes: list[str], alerts: list[str], served: str) -> list[str]:
    """Return a sentence for each thing that is not as it should be."""
    found = [f"the page reports: {error}" for error in page.errors]
    if page.rounds < 1:
        found.append("the page never got all its answers")
    if len(page.panels) != PANELS:
        found.append(f"the page has {len(page.panels)} panels, expected were {PANELS}")
    found += [f"panel '{name}' shows {points} points" for name, points in page.panels.items() if points < 2]
    if not [line for line in page.lines if line.count("L") >= 1]:
        found.append("no line is drawn through two points")
    found += [f"node {name} is missing" for name in nodes if name not in page.nodes]
    found += [f"alert {name} is missing" for name in alerts if name not in page.alerts]
    if served and served not in page.words:
        found.append(f"the served model {served} is not shown")
    if len(page.tiles) != 7 or "NaN" in " ".join(page.words):
        found.append(f"the tiles are {page.tiles}, or a value is NaN")
    return found


def main() -> int:
    """Look; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--alert", action="append", default=[])
    parser.add_argument("--served", default="")
    parser.add_argument("--screenshot", type=Path)
    args = parser.parse_args()
    page = Page(visit(f"{args.url}/#range=5m&theme=light", "--dump-dom"))
    found = faults(page, args.node, args.alert, args.served)
    print(
        "\n".join(
            found or [f"{len(page.panels)} panels with {sum(page.panels.values())} points, {len(page.nodes)} nodes"]
        )
    )
    if args.screenshot and not found:
        fresh = args.screenshot.with_suffix(".fresh.png")
        visit(f"{args.url}/#range=5m&theme=light", f"--screenshot={fresh}")
        fresh.replace(args.screenshot)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
