# SPDX-License-Identifier: Apache-2.0
"""A control node with macOS: what runs there neither imports nor uses what Python has on Linux alone.

The names are those of Python's documentation that are not available on macOS.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
PLUGINS = REPO / "plugins"
PACKAGE = "ansible_collections.gb10.cluster.plugins"
#: Modules that tasks delegate to localhost.
ON_THE_CONTROL_NODE = ("image_backup", "node_files", "program", "weights_hub", "weights_manifest")
LINUX_ONLY: dict[str, tuple[str, ...]] = {
    "os": (
        "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "splice", "memfd_create",
        "eventfd", "getxattr", "setxattr", "listxattr", "removexattr", "copy_file_range", "getrandom", "O_DIRECT",
        "O_TMPFILE",
        "O_PATH", "O_NOATIME", "O_LARGEFILE", "O_RSYNC", "pidfd_open", "setns", "unshare", "fdatasync", "getresuid",
        "getresgid", "pipe2", "POSIX_FADV_DONTNEED", "POSIX_FADV_WILLNEED", "POSIX_FADV_SEQUENTIAL",
    ),
    "time": ("CLOCK_BOOTTIME", "CLOCK_TAI"),
    "select": ("epoll",),
    "socket": (
        "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_VSOCK", "SO_BINDTODEVICE", "SO_PEERCRED", "SO_PRIORITY", "SO_MARK",
        "TCP_USER_TIMEOUT", "TCP_CORK", "TCP_QUICKACK", "TCP_KEEPIDLE", "TCP_INFO", "TCP_CONGESTION", "MSG_ERRQUEUE",
        "SOCK_NONBLOCK", "SOCK_CLOEXEC",
    ),
    "signal": ("SIGPWR", "SIGSTKFLT", "SIGPOLL", "SIGRTMIN", "SIGRTMAX", "sigtimedwait", "sigwaitinfo"),
    "resource": ("prlimit",),
    "fcntl": ("F_SETPIPE_SZ", "F_OFD_SETLK", "F_OFD_SETLKW", "F_ADD_SEALS"),
    "mmap": ("MAP_POPULATE",),
}  # fmt: skip


#: A use that handles its absence where it stands.
GUARDED = frozenset(
    {
        ("module_utils/_weights/server.py", "socket.TCP_CONGESTION"),
        ("plugin_utils/_lease/processes.py", "/proc/self/ns/pid"),
        ("plugin_utils/_lease/processes.py", "/proc/self/stat"),
    }
)


def entries() -> list[Path]:
    """Return the files of the collection that run on the control node, without what they import."""
    rooms = ("action", "callback", "filter", "lookup", "plugin_utils")
    found = [path for room in rooms for path in sorted((PLUGINS / room).rglob("*.py"))]
    return [*found, *(PLUGINS / "modules" / f"{name}.py" for name in ON_THE_CONTROL_NODE)]


def imported(path: Path) -> list[Path]:
    """Return the files of the collection that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            base = PLUGINS / str(node.module).removeprefix(f"{PACKAGE}.").replace(".", "/")
            found += [base.with_suffix(".py"), *(base / f"{each.name}.py" for each in node.names)]
    return [each for each in found if each.is_file()]


def controller_files() -> list[Path]:
    """Return what runs on the control node: the entries and everything that they import."""
    todo, seen = entries(), set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imported(path)
    return sorted(seen)


def dotted(path: Path) -> str:
    """Return the dotted name of a file of the collection."""
    return f"{PACKAGE}.{'.'.join(path.relative_to(PLUGINS).with_suffix('').parts)}"


def uses(source: str) -> list[str]:
    """Return the uses of names that Linux alone has, as ``os.O_DIRECT, line 3``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in LINUX_ONLY.get(node.value.id, ()):
                found.append(f"{node.value.id}.{node.attr}, line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module in LINUX_ONLY:
            found += [
                f"{node.module}.{each.name}, line {node.lineno}"
                for each in node.names
                if each.name in LINUX_ONLY[node.module]
            ]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"/proc/\S+$", node.value):
            found.append(f"{node.value}, line {node.lineno}")
    return found


def test_a_use_is_found() -> None:
    source = 'import os\nfrom time import CLOCK_BOOTTIME\nos.posix_fadvise(1, 2, 3, 4)\nopen("/proc/meminfo")\n'
    assert uses(source) == ["time.CLOCK_BOOTTIME, line 2", "os.posix_fadvise, line 3", "/proc/meminfo, line 4"]


def test_what_runs_on_the_control_node_uses_nothing_of_linux() -> None:
    found = {}
    for path in controller_files():
        name = str(path.relative_to(PLUGINS))
        left = [use for use in uses(path.read_text(encoding="utf-8")) if (name, use.partition(",")[0]) not in GUARDED]
        if left:
            found[name] = left
    assert found == {}


IMPORT_ALL = """
import importlib, sys, types
removed = {removed!r}
for name, attributes in removed.items():
    module = importlib.import_module(name)
    for attribute in attributes:
        if hasattr(module, attribute):
            delattr(module, attribute)
sys.platform = "darwin"
# Python's own module of macOS, for urllib.
sys.modules["_scproxy"] = types.SimpleNamespace(_get_proxy_settings=dict, _get_proxies=dict)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


def test_all_of_it_is_imported_without_what_darwin_lacks() -> None:
    names = [dotted(path) for path in controller_files()]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(removed=LINUX_ONLY), *names],
        cwd=REPO, capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) == len(names) > 50
