# SPDX-License-Identifier: Apache-2.0
"""Fetches a model's missing pieces to a node and passes on every verified piece meanwhile.  Does I/O.

Runs on a node with the path of its job as its argument for as long as weights move; the control node uses `Server`
alone, as the first link. A node asks the node before it for one piece after the other. A piece that has not arrived
there yet is waited for, so that all nodes are busy with almost the same bytes and each link carries one copy. Nothing
counts, is passed on or is put in its place that does not have the piece's hash.

Chosen over a proxy that stores complete files because a hop then lags by a piece instead of by a shard, and a broken
transfer costs a piece. The bulk path is the kernel's: sendfile() on one side, on the other splice() from the socket
into the file, 256 KiB at a time, and hashing where the page cache has them.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import heapq
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights
from ansible_collections.gb10.cluster.plugins.module_utils._weights.server import Server
from ansible_collections.gb10.cluster.plugins.module_utils._weights.source import (
    Connection,
    NotYetError,
    SourceDeadError,
    Stream,
)
from ansible_collections.gb10.cluster.plugins.module_utils._weights.store import (
    SILENCE_S,
    MoveError,
    RefusedError,
    Store,
    now,
    stamp,
    write_at,
)

#: How long a dead source is left alone.
DOWN_S = 20.0
#: After its start a node waits so long for the one before it to start as well.
GRACE_S = 10.0
WRONG_TWICE = 2
STATUS_EVERY_S = 0.3
#: The rate that is reported is that of about ten seconds.
RATE_SAMPLES = 33


class Mover:
    """One node's part of a transfer."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        manifest = job["manifest"]
        error = weights.manifest_error(manifest)
        if error:
            raise MoveError(error)
        root = Path(job["root"])
        self.tree = root / manifest["repo"]
        self.incoming = root / ".incoming" / manifest["repo"]
        self.missing = set(job["missing"])
        names = [file["path"] for file in manifest["files"]]
        there = [name not in self.missing for name in names]
        paths = [(self.tree if good else self.incoming) / name for name, good in zip(names, there, strict=True)]
        self.store = Store(manifest, paths, there)
        self.store.repair = self.repair
        self.server = Server(self.store, job["token"], job["allow"])
        self.sources: list[dict[str, Any]] = job["sources"]
        self.scatter: dict[str, int] = job["scatter"]
        self.grace_s = float(job.get("grace_s", GRACE_S))
        self.silence_s = float(job.get("silence_s", SILENCE_S))
        self.state = "moving"
        self.message = ""
        self.source = ""
        self.fetched_bytes = 0
        self.local_bytes = 0
        self.wrong_pieces = 0
        self.by_source: dict[str, int] = {}
        self._seen: list[tuple[float, int]] = []
        self.progress_at = self.started_at = now()
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._down: dict[int, float] = {}
        self._filled: dict[int, int] = {}
        self._rails_down: dict[tuple[str, int], float] = {}
        self._taken = 0
        self._failure: str | None = None
        self._own: list[int] = []
        self._others: list[int] = []

    # Which piece next.

    def repair(self, piece: weights.Piece) -> bool:
        """Fetch a piece again that is damaged here; false for a file that is in its place already."""
        if self.store.manifest["files"][piece.file]["path"] not in self.missing:
            return False
        with self.store.changed:
            if self.state != "moving":
                return False
            self.store.drop(piece)
        with self._lock:
            self.wrong_pieces += 1
            heapq.heappush(self._others, piece.index)
        return True

    def _queue(self) -> None:
        of, position = self.scatter["of"], self.scatter["position"]
        missing = [piece.index for piece in self.store.pieces if not self.store.have[piece.index]]
        self._own = [index for index in missing if of and index % of == position]
        self._others = [index for index in missing if not of or index % of != position]

    def _take(self, own: bool) -> weights.Piece | None:
        """Return the next piece to look for; the first ones first, as all nodes do."""
        with self._lock:
            for heap in (self._own, self._others) if own else (self._others, self._own):
                if heap:
                    self._taken += 1
                    return self.store.pieces[heapq.heappop(heap)]
            return None

    def _give_back(self, piece: weights.Piece, done: bool) -> None:
        with self._lock:
            self._taken -= 1
            if not done:
                heapq.heappush(self._others, piece.index)

    # What is here already.

    def _local(self, piece: weights.Piece) -> bool:
        """Return whether the piece was here, in what an earlier run left or in the file that is to be replaced."""
        descriptor = self.store.descriptor(piece.file, os.O_RDWR | os.O_CREAT)
        try:
            data_at = os.lseek(descriptor, piece.offset, os.SEEK_DATA)
        except OSError:
            data_at = -1
        if data_at == piece.offset and self.store.right(piece, descriptor):
            return True
        try:
            old = os.open(self.tree / self.store.manifest["files"][piece.file]["path"], os.O_RDONLY)
        except OSError:
            return False
        try:
            data = os.pread(old, piece.length, piece.offset)
        finally:
            os.close(old)
        if hashlib.sha256(data).digest() != self.store.expected(piece):
            return False
        write_at(descriptor, data, piece.offset)
        return True

    # What comes from others.

    def _alive(self, places: Sequence[int]) -> list[int]:
        """Return the sources to try, those left out that did not answer a moment ago, unless all of them."""
        alive = [place for place in places if self._down.get(place, 0.0) < now()]
        return alive or list(places)

    def _note_dead(self, place: int, problem: SourceDeadError) -> bool:
        """Leave a source alone for a while; return False while it may yet have to start."""
        if now() - self.started_at < self.grace_s and not self.by_source.get(self.sources[place]["name"]):
            time.sleep(0.05)
            return False
        with self._lock:
            self._down[place] = now() + DOWN_S
            self.message = f"{self.sources[place]['name']} does not answer ({problem})."
        return True

    def _note_bytes(self, index: int, filled: int) -> None:
        """Note progress: more of a piece has come than ever before, so a source that always breaks off is none."""
        if filled > self._filled.get(index, 0):
            self._filled[index] = filled
            self.progress_at = now()

    def _fetch(self, piece: weights.Piece, stream: Stream) -> bool:
        """Fetch a piece into its file; return False when no source has it yet.

        :raises MoveError: when every source gave it with a wrong hash, or none can give it.
        """
        wrong: dict[int, int] = {}
        refusals: list[str] = []
        descriptor = self.store.descriptor(piece.file, os.O_RDWR | os.O_CREAT)
        places = weights.order(self.sources, piece.index, self.scatter["of"], self.scatter["position"])
        for place in self._alive(places):
            name = self.sources[place]["name"]
            while wrong.get(place, 0) < WRONG_TWICE and not self.stopping.is_set():
                self.source = name
                note = partial(self._note_bytes, piece.index)
                fetch = partial(
                    Connection.fetch, piece=piece, descriptor=descriptor, pipe=stream.pipe, recheck=place in wrong,
                    progress=note,
                )  # fmt: skip
                try:
                    found = self._ask(place, stream, fetch)
                except NotYetError:
                    return False
                except SourceDeadError as problem:
                    if not self._note_dead(place, problem):
                        return False
                    break
                except RefusedError as problem:
                    refusals.append(str(problem))
                    break
                with self._lock:
                    self.fetched_bytes += piece.length
                    self.by_source[name] = self.by_source.get(name, 0) + piece.length
                if found == self.store.expected(piece):
                    return True
                wrong[place] = wrong.get(place, 0) + 1
                with self._lock:
                    self.wrong_pieces += 1
        if refusals:
            raise MoveError(refusals[0])
        if wrong and max(wrong.values()) >= WRONG_TWICE:
            file = self.store.manifest["files"][piece.file]["path"]
            raise MoveError(
                f"{file} came with wrong bytes twice from {', '.join(self.sources[place]['name'] for place in wrong)}, "
                f"in the {piece.length} bytes from {piece.offset}: the source is damaged or has changed."
            )
        return False

    def _ask(self, place: int, stream: Stream, what: Callable[[Connection], bytes]) -> bytes:
        """Ask one source, over the connection of this stream; streams take turns among the rails that answer."""
        rails = [(str(host), int(port)) for host, port in self.sources[place]["rails"]]
        turn = stream.number % len(rails)
        rails = rails[turn:] + rails[:turn]
        dead: SourceDeadError | None = None
        for rail in [rail for rail in rails if self._rails_down.get(rail, 0.0) < now()] or rails:
            try:
                connection = stream.connections.get(place)
                if connection is None:
                    digest = self.store.manifest["digest"]
                    connection = Connection(*rail, self.job["token"], digest, self.silence_s)
                    stream.connections[place] = connection
                return what(connection)
            except SourceDeadError as problem:
                failed = stream.connections.pop(place, None)
                if failed is not None:
                    failed.close()
                with self._lock:
                    self._rails_down[failed.rail if failed is not None else rail] = now() + DOWN_S
                dead = problem
        raise dead or SourceDeadError(f"{self.sources[place]['name']} has no address")

    def _work(self, number: int, own: bool) -> None:
        stream = Stream(number)
        try:
            while not self.stopping.is_set() and self._failure is None:
                piece = self._take(own)
                if piece is None:
                    if self._taken == 0:
                        return
                    time.sleep(0.02)
                    continue
                done = False
                try:
                    done = self._get(piece, stream)
                finally:
                    self._give_back(piece, done)
        except MoveError as problem:
            self._failure = self._failure or str(problem)
        except OSError as problem:
            self._failure = self._failure or self.explain(problem)
        finally:
            stream.close()

    def _get(self, piece: weights.Piece, stream: Stream) -> bool:
        if self._local(piece):
            with self._lock:
                self.local_bytes += piece.length
        elif not self._fetch(piece, stream):
            if now() - self.progress_at > self.job["stall_s"]:
                raise MoveError(
                    f"Nothing arrived for {weights.duration(now() - self.progress_at)}. {self.message}".strip()
                    + " Run again when it answers; what has arrived is kept."
                )
            time.sleep(0.05)
            return False
        self.store.add(piece)
        self._filled.pop(piece.index, None)
        self.progress_at = now()
        return True

    def explain(self, problem: OSError) -> str:
        """Return a sentence for what the operating system refused."""
        if problem.errno == errno.ENOSPC:
            return f"{self.job['root']} is full; something else filled it while weights arrived. What arrived is kept."
        if problem.errno == errno.EROFS:
            return f"{self.job['root']} is on a file system that is mounted read-only."
        return f"{problem.filename or self.job['root']}: {problem.strerror or problem}."

    # The transfer.

    def _load_hashes(self) -> None:
        """Get the pieces' hashes, from here or from where the pieces come."""
        given = [Path(self.job["pieces"])] if self.job.get("pieces") else []
        for path in (self.tree / weights.PIECES, self.incoming / weights.PIECES, *given):
            with suppress(OSError, ValueError):
                self.store.load_hashes(path.read_bytes(), str(path))
                return
        length = len(self.store.pieces) * weights.HASH_BYTES
        while not self.stopping.is_set():
            for place in self._alive(range(len(self.sources))):
                stream = Stream(0)
                self.source = self.sources[place]["name"]
                try:
                    data = self._ask(place, stream, lambda connection: connection.get("pieces", length))
                    self.store.load_hashes(data, self.source)
                except NotYetError:
                    continue
                except SourceDeadError as problem:
                    self._note_dead(place, problem)
                except (RefusedError, ValueError) as problem:
                    self.message = str(problem)
                else:
                    if self.missing:
                        self.incoming.mkdir(parents=True, exist_ok=True)
                        files.write(self.incoming / weights.PIECES, data)
                    return
                finally:
                    stream.close()
            if now() - self.progress_at > self.job["stall_s"]:
                raise MoveError(f"Nobody sent the hashes of the pieces. {self.message}".strip())
            time.sleep(0.05)

    def _clear(self) -> None:
        """Remove what an earlier run left for another manifest; lengthen and shorten files to their size."""
        wanted = {file["path"]: file["size"] for file in self.store.manifest["files"] if file["path"] in self.missing}
        if self.incoming.is_dir():
            for path in sorted(self.incoming.rglob("*"), reverse=True):
                name = str(path.relative_to(self.incoming))
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif (name not in wanted and name != weights.PIECES) or path.is_symlink():
                    path.unlink()
        for number, file in enumerate(self.store.manifest["files"]):
            if file["path"] in wanted:
                self.store.paths[number].parent.mkdir(parents=True, exist_ok=True)
                os.ftruncate(self.store.descriptor(number, os.O_RDWR | os.O_CREAT), file["size"])

    def move(self) -> None:
        """Fetch everything, then put it in its place.

        :raises MoveError: when it cannot be done; what has arrived stays for the next run.
        """
        if self.job["complete"]:
            with suppress(OSError, ValueError):
                self.store.load_hashes((self.tree / weights.PIECES).read_bytes(), str(self.tree))
            self.state = "complete"
            return
        self._load_hashes()
        self._clear()
        while not self.stopping.is_set():
            self._fetch_all()
            # From here on a piece that is found to be damaged is not taken back.
            with self.store.changed:
                if all(self.store.have):
                    self.state = "placing"
                    break
        if self.state == "placing":
            try:
                self._place()
            except OSError as problem:
                raise MoveError(self.explain(problem)) from problem
            self.state = "complete"

    def _fetch_all(self) -> None:
        self._queue()
        streams = weights.streams_for(self.job["streams"], len(self.store.pieces), os.cpu_count() or 2)
        kinds = [False] * streams + ([True] * streams if self.scatter["of"] else [])
        threads = [
            threading.Thread(target=self._work, args=(number, own), daemon=True) for number, own in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure:
            raise MoveError(self._failure)

    def _place(self) -> None:
        """Move the verified files to their place; the stamp comes last."""
        manifest = self.store.manifest
        for number, file in enumerate(manifest["files"]):
            if file["path"] in self.missing:
                os.fsync(self.store.descriptor(number, os.O_RDWR | os.O_CREAT))
        self.tree.mkdir(parents=True, exist_ok=True)
        old = files.read_json(self.tree / weights.STAMP)
        files.remove(self.tree / weights.STAMP)
        for file in manifest["files"]:
            if file["path"] in self.missing:
                target = self.tree / file["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.incoming / file["path"]).replace(target)
        names = {file["path"] for file in manifest["files"]}
        for file in [] if weights.manifest_error(old) else old["files"]:
            if file["path"] not in names:
                files.remove(self.tree / file["path"])
        if self.store.hashes is not None:
            files.write(self.tree / weights.PIECES, self.store.hashes)
        stamp(self.tree, manifest)
        shutil.rmtree(self.incoming, ignore_errors=True)
        # Directories above that another model's transfer still needs are not empty and stay.
        for folder in list(self.incoming.parents)[: len(Path(manifest["repo"]).parts)]:
            try:
                folder.rmdir()
            except OSError:
                break

    def status(self) -> dict[str, Any]:
        """Return how far this node is; the rate is that of the last calls."""
        self._seen = [*self._seen[-RATE_SAMPLES:], (now(), self.store.have_bytes)]
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return {
            "rate_bytes_per_s": round((last - first) / (last_at - first_at)) if last_at > first_at else 0,
            "run": self.job["run"],
            "state": self.state,
            "message": self.message,
            "source": self.source if self.state == "moving" else "",
            "have_bytes": self.store.have_bytes,
            "total_bytes": self.store.manifest["bytes"],
            "fetched_bytes": self.fetched_bytes,
            "local_bytes": self.local_bytes,
            "served_bytes": self.store.served_bytes,
            "wrong_pieces": self.wrong_pieces,
            "by_source": dict(self.by_source),
            "idle_s": round(now() - self.progress_at, 1) if self.state == "moving" else 0.0,
            "cpu_s": round(time.process_time(), 2),
        }


def main(argv: Sequence[str]) -> int:
    """Run a job until it is stopped or nobody has asked for it for a while."""
    parser = argparse.ArgumentParser(description="Run a node's part of a transfer of weights.")
    parser.add_argument("job", type=Path, help="what gb10.cluster.weights_move has written")
    job = json.loads(parser.parse_args(argv).job.read_text(encoding="utf-8"))
    os.umask(0o022)
    folder = Path(job["run_dir"])
    mover = Mover(job)
    news = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        mover.stopping.set()
        news.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        for address in job["listen"]:
            mover.server.listen(address, job["port"])
    except OSError as problem:
        mover.state, mover.message = "failed", f"It cannot listen on {address}:{job['port']}: {problem.strerror}."
        files.write_json(folder / "status.json", mover.status())
        return 0

    def work() -> None:
        try:
            mover.move()
        except (MoveError, OSError) as problem:
            mover.message = str(problem) if isinstance(problem, MoveError) else mover.explain(problem)
            mover.state = "failed"
            mover.stopping.set()
        news.set()

    threading.Thread(target=work, daemon=True).start()
    lease = folder / "lease"
    touched, touched_at = 0, now()
    while True:
        news.wait(STATUS_EVERY_S)
        news.clear()
        stopped = mover.stopping.is_set()
        files.write_json(folder / "status.json", mover.status())
        if stopped:
            break
        # By this machine's running time: the clock may be put right while weights move.
        if (mark_ns := lease.stat().st_mtime_ns) != touched:
            touched, touched_at = mark_ns, now()
        if now() - max(touched_at, mover.server.asked_at) > job["lease_s"]:
            break
    mover.server.close()
    mover.store.drop_cache()
    return 0
