# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._weights import manifest as weights


def manifest(*sizes: int, piece_bytes: int = 4) -> dict[str, Any]:
    files = [
        {"path": name, "size": size, "sha256": name * 64} for name, size in zip("abc", sizes or (1, 2), strict=False)
    ]
    return weights.make_manifest("o/m", "main", files, piece_bytes, b"hashes")


def test_the_digest_is_of_the_manifests_content() -> None:
    assert manifest()["bytes"] == 3
    assert manifest()["digest"] == manifest()["digest"]
    other = weights.make_manifest("o/m", "main", manifest()["files"], 4, b"other hashes")
    assert other["digest"] != manifest()["digest"]


def test_pieces_cover_every_file_and_none_lies_across_two() -> None:
    pieces = weights.layout(manifest(9, 0, 4))
    assert [(piece.file, piece.offset, piece.length) for piece in pieces] == [
        (0, 0, 4),
        (0, 4, 4),
        (0, 8, 1),
        (2, 0, 4),
    ]
    assert [piece.index for piece in pieces] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("total_bytes", "mib"), [(0, 1), (300 * 2**20, 1), (10**9, 2), (5 * 2**30, 16), (329 * 2**30, 16)]
)
def test_a_piece_is_a_small_part_of_the_model(total_bytes: int, mib: int) -> None:
    assert weights.piece_bytes_for(total_bytes) == mib * 2**20


@pytest.mark.parametrize(("pieces", "streams"), [(1, 2), (500, 4), (21_000, 8)])
def test_a_small_model_has_few_streams(pieces: int, streams: int) -> None:
    assert weights.streams_for(8, pieces, 20) == streams
    assert weights.streams_for(8, pieces, 2) == 2


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../b", "a//b", ".", "a\nb", "a\udcffb"])
def test_names_that_lead_elsewhere_or_cannot_be_printed_are_refused(name: str) -> None:
    assert weights.path_error(name) is not None


@pytest.mark.parametrize("name", ["config.json", "a b'$(x)\"%20.py", "sub/ü.py", "..a"])
def test_odd_names_are_names(name: str) -> None:
    assert weights.path_error(name) is None


def good_manifest(**changes: Any) -> dict[str, Any]:
    """Return a manifest with the length of pieces that belongs to its size, and then some changes."""
    return {**manifest(piece_bytes=2**20), **changes}


def test_a_manifest_of_another_version_or_with_a_bad_name_is_refused() -> None:
    assert weights.manifest_error(good_manifest()) is None
    assert "has version 1, expected is 2" in str(weights.manifest_error(good_manifest(version=1)))
    outside = weights.make_manifest("../x", "main", manifest()["files"], 2**20, b"hashes")
    assert "leads out of the model's directory" in str(weights.manifest_error(outside))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": "x"}, "it has no list of files"),
        ({"files": [{"path": "a", "size": -1, "sha256": "a" * 64}]}, "a file in it has no path, size and sha256"),
        ({"files": [{"path": "a", "size": True, "sha256": "a" * 64}]}, "a file in it has no path, size and sha256"),
        ({"files": [{"path": "a", "size": 1, "sha256": "a"}]}, "a file in it has no path, size and sha256"),
        ({"files": [{"path": "a", "size": 2**50, "sha256": "a" * 64}]}, "its sizes do not add up"),
        ({"bytes": 7}, "its sizes do not add up"),
        ({"piece_bytes": 1}, "its sizes do not add up"),
        ({"pieces_sha256": None}, "pieces_sha256 is missing"),
        ({"revision": "other"}, "its digest is not that of its content"),
    ],
)
def test_a_manifest_that_somebody_edited_is_refused(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in str(weights.manifest_error(good_manifest(**changes)))


@pytest.mark.parametrize("manifest", [None, [], "x", {}, 7])
def test_what_is_no_manifest_is_refused(manifest: Any) -> None:
    assert weights.manifest_error(manifest) is not None


def test_what_neither_stamp_nor_mark_vouches_for_is_read_again() -> None:
    marks = {"a": [1, 5, 5, 9], "b": [2, 5, 5, 8]}
    assert weights.unstamped(manifest(), marks, manifest(), marks) == []
    assert weights.unstamped(manifest(), marks, {}, marks) == ["a", "b"]
    assert weights.unstamped(manifest(), marks, manifest(), {}) == ["a", "b"]
    written = {**marks, "b": [2, 5, 6, 8]}
    assert weights.unstamped(manifest(), written, manifest(), marks) == ["b"]
    assert weights.unstamped(manifest(), {"a": marks["a"]}, manifest(), marks) == ["b"]


def tree(repo: str, size: int, used: float, **changes: Any) -> weights.Tree:
    return weights.Tree(repo, size, used, **{"ours": True, **changes})


def test_what_is_unused_for_longest_goes_first_and_no_more_than_needed() -> None:
    trees = [tree("o/new", 10, 3), tree("o/old", 10, 1), tree("o/middle", 10, 2)]
    chosen, stays = weights.evict(trees, 15, ["o/*"], [])
    assert [each.repo for each in chosen] == ["o/old", "o/middle"]
    assert stays == {"o/new": "there is room without it"}


def test_what_must_stay_stays_with_its_reason() -> None:
    trees = [
        tree("o/foreign", 99, 1, ours=False),
        tree("o/served", 99, 1, in_use_by="the model that is served, served"),
        tree("o/kept", 99, 1),
        tree("x/unnamed", 99, 1),
        tree("o/small", 5, 1),
    ]
    chosen, stays = weights.evict(trees, 50, ["o/*"], ["o/kept"])
    assert chosen == []
    assert stays == {
        "o/foreign": "it carries no manifest of ours",
        "o/served": "it is in use by the model that is served, served",
        "o/kept": "weights_keep names it",
        "x/unnamed": "weights_evictable does not name it",
        "o/small": "it would not suffice",
    }


SOURCES: list[dict[str, Any]] = [
    {"name": "origin", "position": None},
    {"name": "b", "position": 1},
    {"name": "c", "position": 2},
]


def test_in_a_chain_the_nearest_is_asked_first() -> None:
    assert weights.order(SOURCES, 5, 0, 0) == [0, 1, 2]


@pytest.mark.parametrize(("index", "expected"), [(0, [0, 1, 2]), (1, [1, 0, 2]), (2, [2, 0, 1]), (3, [0, 1, 2])])
def test_in_a_scatter_the_owner_is_asked_first_and_the_origin_stands_in(index: int, expected: list[int]) -> None:
    assert weights.order(SOURCES, index, 3, 0) == expected


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_each_node_of_a_chain_asks_the_one_before_it_and_falls_back_to_those_before(count: int) -> None:
    names = [f"n{number}" for number in range(count)]
    addresses = {name: f"10.0.0.{number}" for number, name in enumerate(names)}
    first = weights.plan_node(names, "n0", addresses, 5081, tunnels=2)
    assert first["sources"] == [
        {"name": "the control node", "rails": [["127.0.0.1", 5082], ["127.0.0.1", 5083]], "position": None}
    ]
    for number in range(1, count):
        plan = weights.plan_node(names, names[number], addresses, 5081)
        assert [source["name"] for source in plan["sources"]] == names[:number][::-1]
        assert plan["listen"] == [f"10.0.0.{number}"]
        assert set(plan["allow"]) == {*addresses.values(), "127.0.0.1"}


def test_one_node_alone_listens_nowhere() -> None:
    plan = weights.plan_node(["n0"], "n0", {"n0": "spark.example"}, 5081, tunnels=1)
    assert plan["listen"] == []
    assert [source["name"] for source in plan["sources"]] == ["the control node"]


def test_both_rails_are_listened_on_and_asked() -> None:
    addresses = {"a": ["10.0.0.1", "10.0.1.1"], "b": ["10.0.0.2", "10.0.1.2"]}
    plan = weights.plan_node(["a", "b"], "b", addresses, 5081)
    assert plan["listen"] == ["10.0.0.2", "10.0.1.2"]
    assert plan["sources"][0]["rails"] == [["10.0.0.1", 5081], ["10.0.1.1", 5081]]


def test_in_a_scatter_all_ask_the_control_node_and_one_another() -> None:
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
    plan = weights.plan_node(["a", "b", "c"], "b", addresses, 5081, tunnels=1, scatter=True)
    assert [source["name"] for source in plan["sources"]] == ["the control node", "a", "c"]
    assert [source["position"] for source in plan["sources"]] == [None, 0, 2]
    assert plan["scatter"] == {"of": 3, "position": 1}


STATUS = {"state": "moving", "have_bytes": 2**30, "total_bytes": 3 * 2**30, "source": "gx10-1", "idle_s": 1.0}


def test_a_line_reports_bytes_rate_and_time_left() -> None:
    line = weights.progress_line("gx10-2", {**STATUS, "rate_bytes_per_s": 2**30 / 30})
    assert line == "gx10-2: 1.0 GiB of 3.0 GiB, 36 MB/s, 1 min 00 s left, from gx10-1"
    assert weights.progress_line("gx10-2", STATUS).endswith("0 MB/s, no estimate yet, from gx10-1")
    complete = {**STATUS, "state": "complete", "have_bytes": 3 * 2**30}
    assert weights.progress_line("gx10-2", complete) == "gx10-2: 3.0 GiB of 3.0 GiB, complete"


def test_a_node_that_receives_nothing_is_named_with_what_it_waits_for() -> None:
    assert weights.stall_line("gx10-3", STATUS, 8) is None
    stalled = {
        **STATUS,
        "idle_s": 9.4,
        "source": "gx10-2",
        "message": "gx10-2 does not answer (10.0.0.2:5081: silent).",
    }
    assert weights.stall_line("gx10-3", stalled, 8) == (
        "gx10-3 has received nothing for 9 s; it waits for gx10-2. gx10-2 does not answer (10.0.0.2:5081: silent)."
    )
    assert weights.stall_line("gx10-3", {**stalled, "state": "complete"}, 8) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3 * 3600 + 125, "3 h 02 min")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert weights.duration(seconds) == text


def machine(*netdevs: tuple[list[str], bool]) -> dict[str, Any]:
    """Return what gb10.cluster.fabric_facts reports of a machine with these addresses, each port with its carrier."""
    return {"ports": [{"netdevs": [{"addresses": each, "carrier": carrier}]} for each, carrier in netdevs]}


def test_rails_are_the_subnets_that_all_members_share() -> None:
    given = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
    machines = {
        "a": machine((["10.0.0.1/24", "fe80::1/64"], True), (["10.0.1.1/24"], True), (["10.0.9.1/30"], True)),
        "b": machine((["10.0.0.2/24"], True), (["10.0.1.2/24"], True), (["10.0.9.2/30"], True)),
        "c": machine((["10.0.0.3/24"], True), (["10.0.1.3/24"], True), (["10.0.9.5/30"], True)),
    }
    both = {"a": ["10.0.0.1", "10.0.1.1"], "b": ["10.0.0.2", "10.0.1.2"], "c": ["10.0.0.3", "10.0.1.3"]}
    assert weights.rails(given, machines) == both
    # A member that takes no part does not count.
    assert weights.rails({**given, "d": "10.0.0.4"}, machines) == {**both, "d": ["10.0.0.4"]}


def test_a_rail_that_one_member_has_not_is_none() -> None:
    given = {"a": "10.0.0.1", "b": "10.0.0.2"}
    one = {host: [address] for host, address in given.items()}
    whole = machine((["10.0.0.1/24"], True), (["10.0.1.1/24"], True))
    for other in (
        machine((["10.0.0.2/24"], True)),
        machine((["10.0.0.2/24"], True), (["10.0.1.2/24"], False)),
        machine((["10.0.0.2/24"], True), (["10.0.1.2/24", "10.0.1.9/24"], True)),
    ):
        assert weights.rails(given, {"a": whole, "b": other}) == one
    assert weights.rails({"a": "spark.example"}, {}) == {"a": ["spark.example"]}


def test_the_owners_own_list_of_rails_stays() -> None:
    machines = {"a": machine((["10.0.0.1/24"], True), (["10.0.1.1/24"], True))}
    assert weights.rails({"a": ["10.0.1.1"], "b": "x"}, machines) == {"a": ["10.0.1.1"], "b": ["x"]}
