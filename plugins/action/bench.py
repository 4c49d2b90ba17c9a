# SPDX-License-Identifier: Apache-2.0
"""Controller side of gb10.cluster.bench: measures the served endpoint, keeps the results and writes the report."""

from __future__ import annotations

import asyncio
import os
import platform
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.plugin_utils._action import ControlNodeAction
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import (
    compare,
    export,
    gates,
    overhead,
    points,
    pooling,
    report,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import replay as replays
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench import run as measure
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.client import (
    BenchError,
    Client,
    Endpoint,
    connect,
    import_aiohttp,
)
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.points_run import run_points
from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.prompt import PromptError, haystack

T = TypeVar("T")


def concurrencies(asked: list[int], expected: Mapping[str, Any], slots: int) -> list[int]:
    """Return the numbers of requests at once: as asked, as published, or by twos to two beyond the slots."""
    if asked:
        return asked
    published = [int(point["concurrency"]) for point in expected.get("sweep") or []]
    if published:
        return published
    limit = slots or 8
    doubled = [2**power for power in range(limit.bit_length()) if 2**power < limit]
    return [*doubled, limit, limit + 2]


def wrong_arguments(args: Mapping[str, Any], counts: list[int]) -> list[str]:
    """Return a sentence for each argument that cannot be measured with."""
    wrong = [f"Concurrency {count} is not possible: it must be 1 or more." for count in counts if count < 1]
    wrong += [
        f"Concurrency {count} is named twice." for count in sorted({each for each in counts if counts.count(each) > 1})
    ]
    least: dict[str, float] = {
        "rounds": 1,
        "runs": 1,
        "gate_needle_tokens": 1,
        "gate_output_tokens": 1,
        "input_tokens": 1,
        "output_tokens": 2,
        "needle_output_tokens": 1,
        "trace_concurrency": 1,
        "trace_block_tokens": 1,
    }
    wrong += [f"{name} is {args[name]}; it must be {low:g} or more." for name, low in least.items() if args[name] < low]
    wrong += [
        f"{name} is {args[name]:g}; it must be above 0."
        for name in ("stall_seconds", "trace_speed")
        if not args[name] > 0
    ]
    smallest = {"pp": 1, "tg": 2, "depth": 0}
    wrong += [
        f"{name} has {value}; it must be {low} or more."
        for name, low in smallest.items()
        for value in args[name]
        if value < low
    ]
    if args["profile"] and args["api"] != "chat":
        wrong.append("bench_profile measures /v1/chat/completions alone, as llama-benchy does: set bench_api to chat.")
    if args["profile"] and pools(args["spec"]):
        wrong.append(f"bench_profile {args['profile']} measures generated tokens, which a pooling model has none of.")
    for depth in [*(needle["depth"] for needle in args["needles"]), *args["gate_needle_depths"]]:
        try:
            haystack("", "", depth)
        except PromptError as error:
            wrong.append(str(error))
    if args["trace"] and not Path(args["trace"]).is_file():
        wrong.append(f"The trace {args['trace']} is no file.")
    return wrong


def pools(spec: Mapping[str, Any]) -> bool:
    """Return whether a model answers with embeddings or scores, and generates nothing."""
    return bool((spec.get("serve") or {}).get("runner") == "pooling")


def too_long(args: Mapping[str, Any], limit: int | None) -> list[str]:
    """Return a sentence for each measurement that the served context length has no room for."""
    if not limit:
        return []
    found = []
    if pools(args.get("spec") or {}):
        # It generates nothing.
        args = {**args, "output_tokens": 0, "needles": []}
    if args["sweep"] and args["input_tokens"] + args["output_tokens"] > limit:
        found.append(
            f"{args['input_tokens']} tokens in and {args['output_tokens']} out are more than the {limit} that the "
            f"model serves (max_model_len): set bench_input_tokens to {max(1, limit - args['output_tokens'])} or less, "
            "or bench_output_tokens lower."
        )
    if args.get("profile"):
        asked = points.grid(args["profile"], args)
        kept, words = points.within(asked, limit)
        # What a profile has too much is left out; what was asked for by its depth is not.
        if words and (args["depth"] or not kept):
            found.append(f"{words} The smallest takes {min(point.total for point in asked)} tokens.")
    found += [
        f"A needle in {needle['tokens']} tokens and {args['needle_output_tokens']} for the answer are more than the "
        f"{limit} that the model serves (max_model_len): make bench_needles or bench_needle_output_tokens smaller."
        for needle in args["needles"]
        if needle["tokens"] + args["needle_output_tokens"] > limit
    ]
    return found


def without(value: T, secret: str) -> T:
    """Return a value with `***` in each text in place of a secret that a server has repeated."""
    if not secret:
        return value
    if isinstance(value, str):
        return cast(T, value.replace(secret, "***"))
    if isinstance(value, dict):
        return cast(T, {key: without(item, secret) for key, item in value.items()})
    return cast(T, [without(item, secret) for item in value]) if isinstance(value, list | tuple) else value


class ActionModule(ControlNodeAction):
    _secret = ""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result, args = self.begin(tmp, task_vars, "bench")
        result["changed"] = False
        counts = concurrencies(args["concurrency"], args["spec"].get("expected") or {}, args["slots"])
        wrong = wrong_arguments(args, counts)
        self._secret = args["api_key"]
        if wrong:
            return {**result, "failed": True, "msg": "\n".join(wrong)}
        try:
            return {**result, **asyncio.run(self._measure(args, counts))}
        except BenchError as error:
            failure = {"failed": True, "msg": str(error), "exception": traceback.format_exc()}
            return {**result, **without(failure, self._secret)}

    def _say(self, words: str) -> None:
        self._display.display(f"  {without(words, self._secret)}")

    async def _measure(self, args: Mapping[str, Any], counts: list[int]) -> dict[str, Any]:
        spec = args["spec"]
        endpoint = Endpoint(
            url=args["url"].rstrip("/"),
            model=spec["served_name"],
            api_key=args["api_key"],
            # /tokenize of a pooling model takes a prompt; there is no chat to count.
            chat=args["api"] == "chat" and not pools(spec),
            stall_s=args["stall_seconds"],
            extra=args["request"],
            tokenizer=args["tokenizer"],
        )
        async with connect(endpoint) as client:
            limit, version = await self._look(client, endpoint, args)
            if self._task.check_mode:
                return {"msg": f"{endpoint.url} serves {endpoint.model}; nothing is measured in check mode."}
            stamp, taken = report.now_stamp()
            nodes = {name: compare.node_marks(facts) for name, facts in args["nodes"].items()}
            print_ = compare.fingerprint(
                spec, image=args["image"], vllm_version=version, nodes=nodes, command=args["command"]
            )
            problems: list[str] = []
            found: dict[str, Any] = {
                "format": report.FORMAT,
                "run": f"{stamp}-{print_['digest']}",
                "taken": taken,
                "model": spec["name"],
                "served_name": endpoint.model,
                "url": endpoint.url,
                "api": args["api"],
                "max_model_len": limit,
                "fingerprint": print_,
                "decode_ceiling": (spec.get("expected") or {}).get("decode_ceiling_tokens_per_s"),
                "client": {
                    "python": platform.python_version(),
                    "aiohttp": import_aiohttp().__version__,
                    "overhead": [],
                },
                "sweep": None,
                "points": None,
                "gates": [],
                "needles": [],
                "trace": None,
            }
            seed = f"{os.getpid()}-{stamp}"
            generates = not pools(spec)
            if args["client_overhead"] and args["sweep"] and generates:
                rows = await self._part(
                    "the client overhead", lambda: overhead.client_overhead(counts, self._say), problems
                )
                found["client"]["overhead"] = rows or []
            if args["sweep"]:
                sweep = measure.Sweep(
                    counts,
                    args["input_tokens"],
                    args["output_tokens"],
                    args["rounds"],
                    args["distinct_prompts"],
                    args["slots"] or None,
                    seed,
                )
                runs = measure.run_sweep if generates else pooling.run_pooling
                found["sweep"] = await self._part("the sweep", lambda: runs(client, sweep, self._say), problems)
            if args["profile"]:
                kept, left_out = points.within(points.grid(args["profile"], args), limit)
                plan = points.Plan(
                    kept, args["profile"], args["runs"], args["prefix_caching"], args["latency_mode"], seed
                )
                found["points"] = await self._part("the points", lambda: run_points(client, plan, self._say), problems)
                if found["points"]:
                    found["points"].update(left_out=left_out, model=spec["repo"])
            if args["gates"]:
                how = {key.removeprefix("gate_"): args[key] for key in args if key.startswith("gate_")}
                how.update(limit=limit, at_once=args["slots"], seed=seed)
                serve = spec.get("serve") or {}
                judged = await self._part(
                    "the gates", lambda: measure.run_gates(client, args["gates"], serve, how, self._say), problems
                )
                found["gates"] = judged or []
            if args["needles"] and generates:
                places = [(needle["tokens"], needle["depth"]) for needle in args["needles"]]
                answer_tokens = args["needle_output_tokens"]
                needles = await self._part(
                    "the needles",
                    lambda: measure.run_needles(client, places, answer_tokens, seed, self._say),
                    problems,
                )
                found["needles"] = needles or []
            if args["trace"] and generates:
                replay = replays.Replay(
                    path=Path(args["trace"]),
                    concurrency=args["trace_concurrency"],
                    scheduled={"auto": None, "true": True, "false": False}[args["trace_scheduled"]],
                    speed=args["trace_speed"],
                    limit=args["trace_limit"],
                    block_tokens=args["trace_block_tokens"],
                    slots=args["slots"] or None,
                    aiperf=args["aiperf"],
                    tokenizer=args["tokenizer"] if Path(args["tokenizer"] or "/nonexistent").is_dir() else "",
                )
                found["trace"] = await self._part(
                    "the trace", lambda: replays.run_replay(client, replay, self._say), problems
                )
        return self._keep(args, found, problems)

    async def _look(self, client: Client, endpoint: Endpoint, args: Mapping[str, Any]) -> tuple[int | None, str]:
        """Return the served context length and the engine's version.

        Raises:
            BenchError: the endpoint serves something else, or less than is asked for.
        """
        models = await client.models()
        if endpoint.model not in models:
            served = ", ".join(models) or "nothing"
            raise BenchError(
                f"{endpoint.url} serves {served}, not {endpoint.model}: measure what is served with "
                "-e model=<its name>, or serve this model first (swap-model.yml)."
            )
        limit = models[endpoint.model]
        wrong = too_long(args, limit)
        if wrong:
            raise BenchError("\n".join(wrong))
        return limit, await client.version() or args["vllm_version"] or "unknown"

    async def _part(self, name: str, run: Callable[[], Awaitable[T]], problems: list[str]) -> T | None:
        """Run one part of the measurement; what stops it does not take the other parts' results with it."""
        try:
            return await run()
        except (BenchError, PromptError) as error:
            problems.append(f"{name[0].upper()}{name[1:]} could not be measured: {error}")
            self._say(problems[-1])
            return None

    def _keep(self, args: Mapping[str, Any], found: dict[str, Any], problems: list[str]) -> dict[str, Any]:
        problems += compare.without_answers(found)
        found, problems = without(found, self._secret), without(problems, self._secret)
        folder = Path(args["results_dir"]).expanduser() / str(found["model"])
        earlier, warnings = report.load_runs(folder)
        expected = args["spec"].get("expected") or {}
        rows, reason = compare.compare_expected(found["sweep"], expected)
        by_expected = args["baseline"] == "expected"
        comparisons: list[dict[str, Any]] = [
            {"with": "the published figures", "rows": rows, "reason": reason, "changed": [], "judged": by_expected}
        ]
        baseline, why_not = compare.pick_baseline(earlier, args["baseline"], compare.shape_of(found))
        regressions: list[str] = []
        if by_expected:
            regressions += compare.regressions(rows, args["regression_share"])
        elif baseline is None and args["baseline"] not in ("last", "none"):
            problems.append(why_not)
        else:
            earlier_rows, reason = compare.compare_runs(baseline, found) if baseline else ([], why_not)
            changed = compare.changed_between(baseline["fingerprint"], found["fingerprint"]) if baseline else []
            name = f"run {baseline['run']}" if baseline else "an earlier run"
            comparisons.append(
                {"with": name, "rows": earlier_rows, "reason": reason, "changed": changed, "judged": True}
            )
            regressions += compare.regressions(earlier_rows, args["regression_share"])
            regressions += compare.lost_needles(baseline, found) if baseline else []
        regressions += compare.new_failures(baseline, found)
        regressions += gates.lost(baseline, found)
        found.update(comparisons=comparisons, regressions=regressions, warnings=[*problems, *warnings])
        page, words = report.render(found, earlier, args["regression_share"])
        paths = {kind: folder / f"{found['run']}.{kind}" for kind in ("json", "html", "md")}
        folder.mkdir(parents=True, exist_ok=True)
        files.write(paths["html"], page)
        files.write(paths["md"], words)
        files.write_json(paths["json"], found)
        self._say(f"the report: {paths['html']}")
        exported = self._export(folder, found, args["export"])
        failed = gates.failures(found["gates"])
        for sentence in [*failed, *regressions, *warnings]:
            self._say(sentence)
        result: dict[str, Any] = {
            "run": found["run"],
            "fingerprint": found["fingerprint"]["digest"],
            "regressions": regressions,
            "gates": {each["gate"]: each["status"] for each in found["gates"]},
            "results": {kind: str(path) for kind, path in paths.items()},
            "export": exported,
            "summary": [measure.describe_point(point) for point in (found["sweep"] or {}).get("points", [])],
        }
        if problems:
            result.update(failed=True, msg="\n".join([*problems, f"What was measured is in {paths['html']}"]))
            return result
        stopping = [*(failed if args["fail_on_gate"] else []), *(regressions if args["fail_on_regression"] else [])]
        if stopping:
            result.update(failed=True, msg="\n".join([*stopping, f"The report: {paths['html']}"]))
        return result

    def _export(self, folder: Path, found: Mapping[str, Any], formats: list[str]) -> dict[str, str]:
        """Write the points in the wanted formats of llama-benchy and return their paths."""
        measured = found["points"]
        if not measured or not formats:
            return {}
        (folder / "export").mkdir(exist_ok=True)
        texts = export.files(measured["model"], str(found["taken"]), measured)
        paths = {kind: folder / "export" / f"{found['run']}.{kind}" for kind in formats}
        for kind, path in paths.items():
            files.write(path, texts[kind])
            self._say(f"in llama-benchy's format: {path}")
        return {kind: str(path) for kind, path in paths.items()}
