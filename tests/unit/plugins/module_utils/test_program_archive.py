# SPDX-License-Identifier: Apache-2.0
"""What retention keeps and removes, and what an archive that is not what its name says leads to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._program import archive

OLD = "gb10-engine-0123456789ab.pyz"
YOUNG = "gb10-engine-ba9876543210.pyz"
NOW_S = 1_800_000_000.0


@pytest.fixture
def library(tmp_path: Path) -> Path:
    directory = tmp_path / "gb10"
    (directory / "watch").mkdir(parents=True)
    (directory / "watch" / "watch.py").write_text("")
    for name in (OLD, YOUNG, "engine_entry.py", "session-oom", "gb10-engine-0123.pyz"):
        (directory / name).write_text("")
        os.utime(directory / name, (NOW_S - 2 * archive.GRACE_SECONDS,) * 2)
    os.utime(directory / YOUNG, (NOW_S - 60,) * 2)
    return directory


def process(proc: Path, pid: int, command: bytes = b"sleep\x001", opened: str = "", mounts: str = "") -> None:
    entry = proc / str(pid)
    (entry / "fd").mkdir(parents=True)
    (entry / "ns").mkdir()
    (entry / "cmdline").write_bytes(command)
    (entry / "mountinfo").write_text(mounts)
    (entry / "ns" / "mnt").symlink_to(f"mnt:[{pid}]")
    if opened:
        (entry / "fd" / "3").symlink_to(opened)


def test_only_old_archives_and_earlier_programs_are_candidates(library: Path) -> None:
    names = [path.name for path in archive.candidates(library, "gb10-engine-aaaaaaaaaaaa.pyz", NOW_S)]
    assert names == ["engine_entry.py", OLD, "watch"]
    assert archive.candidates(library, OLD, NOW_S) == [library / "engine_entry.py", library / "watch"]
    assert archive.candidates(library / "absent", OLD, NOW_S) == []


@pytest.mark.parametrize("how", ["command", "open", "mount", "unit", "nothing"])
def test_whatever_names_an_archive_keeps_it(library: Path, tmp_path: Path, how: str) -> None:
    path = library / OLD
    proc, units = tmp_path / "proc", tmp_path / "system"
    (proc / "self").mkdir(parents=True)
    (units / "x.service.d").mkdir(parents=True)
    process(proc, 1)
    (units / "x.service.d" / "10.conf").write_text(
        f"[Service]\nExecStart=/usr/bin/python3 {path} watch\n" if how == "unit" else ""
    )
    process(
        proc,
        2,
        command=b"python3\x00%s\x00entry" % str(path).encode() if how == "command" else b"",
        opened=str(path) if how == "open" else "",
        mounts=f"1 2 8:1 {path} {path} ro - ext4 /dev/x rw\n" if how == "mount" else "",
    )
    found = archive.unused([path], archive.mentions(proc, [units, tmp_path / "absent"]))
    assert found == ([path] if how == "nothing" else [])


def test_a_process_that_ends_meanwhile_hides_no_other(library: Path, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "1").mkdir(parents=True)
    process(proc, 2, mounts=f"x {library / OLD} x")
    (proc / "2" / "fd").rmdir()
    assert archive.unused([library / OLD], archive.mentions(proc, [])) == []


def test_an_earlier_program_is_kept_by_what_is_below_it(library: Path, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "w.service").write_text(f"ExecStart=/usr/bin/python3 -B {library}/watch/watch.py")
    left = archive.unused([library / "watch", library / OLD], archive.mentions(tmp_path / "proc", [tmp_path]))
    assert left == [library / OLD]


def test_removal_takes_files_and_directories(library: Path) -> None:
    archive.remove([library / "watch", library / OLD])
    assert sorted(path.name for path in library.iterdir()) == [
        "engine_entry.py", "gb10-engine-0123.pyz", YOUNG, "session-oom",
    ]  # fmt: skip


def test_an_archive_is_what_its_name_says(tmp_path: Path) -> None:
    data = b"an archive"
    path = tmp_path / "lib" / f"gb10-watch-{archive.digest_of(data)}.pyz"
    archive.install(path, data)
    archive.verify(path)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o644)
    path.write_bytes(b"another")
    with pytest.raises(archive.ArchiveError, match=r"has the digest \w{12}, and its name says \w{12}"):
        archive.verify(path)
    with pytest.raises(archive.ArchiveError):
        archive.install(path, b"another")
