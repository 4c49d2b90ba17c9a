# SPDX-License-Identifier: Apache-2.0
"""Phase, progress and figures of a start, read from the lines that vLLM 0.32.0 prints."""

from __future__ import annotations

import pytest

from ansible_collections.gb10.cluster.plugins.module_utils._probe import log as el
from ansible_collections.gb10.cluster.plugins.module_utils._probe.log import LogLine

START = """\
gb10: vllm-mellum starts as rank 0 on enp1s0f0np0
gb10: ranks gathered 3 of 4; waiting for rank 2, gx10-3 (10.211.0.13)
gb10: all 4 ranks are here, with the same environment
gb10: ray nodes joined 1 of 4
gb10: ray nodes joined 3 of 4
gb10: ray nodes joined 4 of 4
gb10: exec vllm
(APIServer pid=1) INFO 11-20 20:21:25 [api_utils.py:286] non-default args: {'model_tag': '/models/x'}
(APIServer pid=1) INFO 11-20 20:21:48 [model.py:733] Resolved architecture: Qwen3ForCausalLM
(APIServer pid=1) INFO 11-20 20:21:48 [model.py:2152] Using max model len 262144
(EngineCore pid=22) INFO 11-20 20:22:26 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: \
model='/models/x', \
speculative_config=SpeculativeConfig(method='mtp', model='/models/x', num_spec_tokens=3), tokenizer='x'
(Worker pid=31) INFO 11-20 20:24:19 [parallel_state.py:1906] world_size=4 rank=0 local_rank=0 \
distributed_init_method=tcp://10.211.0.11:29510 backend=nccl
gx10-1:31:31 [0] NCCL INFO NET/IB : Using [0]rocep1s0f0:1/RoCE [1]roceP2p1s0f0:1/RoCE [RO]; \
OOB enp1s0f0np0:10.211.0.11<0>
gx10-1:31:31 [0] NCCL INFO Using network IB
(Worker pid=31) INFO 11-20 20:24:19 [gpu_model_runner.py:5039] Starting to load model /models/x...
Loading safetensors checkpoint shards:   0% Completed | 0/94 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  37% Completed | 35/94 [01:10<01:58,  2.01s/it]
Loading safetensors checkpoint shards: 100% Completed | 94/94 [03:10<00:00,  2.01s/it]
(Worker pid=31) INFO 11-20 20:27:21 [default_loader.py:501] Loading weights took 190.04 seconds
(Worker pid=31) INFO 11-20 20:27:22 [llm_base_proposer.py:1470] Detected MTP model. \
Sharing target model embedding weights with the draft model.
(Worker pid=31) INFO 11-20 20:27:26 [gpu_model_runner.py:5149] Model loading \
took 82.50 GiB memory and 191.200000 seconds
(EngineCore pid=22) INFO 11-20 20:28:26 [backends.py:1167] Dynamo bytecode transform time: 11.52 s
(Worker pid=31) INFO 11-20 20:29:26 [gpu_worker.py:759] Available KV cache memory: 14.25 GiB
(EngineCore pid=22) INFO 11-20 20:29:26 [kv_cache_utils.py:2327] GPU KV cache size: 4,981,440 tokens, \
Maximum concurrency for 262,144 tokens per request: 19.00x
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  29%|##9       | 2/7 [00:01<00:03,  1.41it/s]
(Worker pid=31) INFO 11-20 20:29:36 [gpu_model_runner.py:6581] Graph capturing finished in 9 secs, took 1.32 GiB
(EngineCore pid=22) INFO 11-20 20:29:40 [core.py:395] init engine (profile, create kv cache, warmup model) \
took 134.20 s \
(compilation: 40.11 s)
(APIServer pid=1) INFO 11-20 20:29:41 [entry.py:140] Starting vLLM server on http://0.0.0.0:8000
INFO:     Started server process [1]
INFO:     Application startup complete.
"""
LINES = [LogLine(text, time_s=float(number)) for number, text in enumerate(START.splitlines(), 1)]


def position(part: str) -> int:
    """How many lines have been written when the line with this text has."""
    return next(number for number, line in enumerate(LINES, 1) if part in line.text)


@pytest.mark.parametrize(
    ("after", "phase", "done", "total"),
    [
        ("starts as rank 0", "prepare", 0, 0),
        ("ranks gathered 3", "gather", 3, 4),
        ("joined 3 of 4", "ray_join", 3, 4),
        ("gb10: exec vllm", "ray_join", 4, 4),
        ("Resolved architecture", "configure", 0, 0),
        ("Initializing a V1", "rendezvous", 0, 0),
        ("Starting to load", "load", 0, 0),
        ("37% Completed", "load", 35, 94),
        ("Loading weights took", "load", 94, 94),
        ("Model loading took", "profile", 0, 0),
        ("KV cache size", "profile", 0, 0),
        ("29%|", "graph_capture", 2, 7),
        ("Starting vLLM server", "api_start", 0, 0),
        ("Application startup", "ready", 0, 0),
    ],
)
def test_phase_and_progress_after_each_line(after: str, phase: str, done: int, total: int) -> None:
    read = el.read_engine_log(LINES[: position(after)])
    assert (read.phase, read.done, read.total) == (phase, done, total)


def test_phases_never_go_back() -> None:
    orders = [el.PHASES.index(el.read_engine_log(LINES[:count]).phase) for count in range(1, len(LINES) + 1)]
    assert orders == sorted(orders)


def test_every_new_line_is_progress_and_a_repeated_one_is_not() -> None:
    tokens = [el.read_engine_log(LINES[:count]).token for count in range(1, len(LINES) + 1)]
    assert len(set(tokens)) == len(tokens)
    heartbeat = "(EngineCore pid=22) INFO 11-20 20:{}:00 [shm_broadcast.py:600] No available shared memory broadcast {}"
    once = el.read_engine_log([*LINES[:10], LogLine(heartbeat.format(40, 60))])
    often = el.read_engine_log([*LINES[:10], *(LogLine(heartbeat.format(n, 60 * n)) for n in range(40, 50))])
    assert once.token == often.token


def test_the_same_count_of_shards_again_is_progress_only_when_it_counts_on() -> None:
    meter = "Loading safetensors checkpoint shards:  {}% Completed | {}/94 [01:10<01:58,  2.01s/it]"
    tokens = {el.read_engine_log([LogLine(meter.format(n, n))]).token for n in range(1, 6)}
    assert len(tokens) == 5


def test_figures_carry_their_unit() -> None:
    assert el.read_engine_log(LINES).facts == {
        "architecture": "Qwen3ForCausalLM",
        "max_model_len": 262144,
        "vllm_version": "0.32.0",
        "world_size": 4,
        "load_seconds": 191.2,
        "model_gib": 82.5,
        "kv_cache_gib": 14.25,
        "kv_cache_tokens": 4981440,
        "max_concurrency": 19.0,
        "graph_gib": 1.32,
        "init_engine_seconds": 134.2,
    }


def test_mtp_and_network_are_read() -> None:
    read = el.read_engine_log(LINES)
    assert read.mtp == el.MtpWiring(method="mtp", num_spec_tokens=3, detected=True)
    assert read.nccl_network == "IB"


def test_the_short_form_of_the_speculative_config_is_read() -> None:
    line = LogLine("config: SpeculativeConfig(method='mtp', num_spec_tokens=2)")
    assert el.read_engine_log([line]).mtp == el.MtpWiring("mtp", 2, detected=False)


def test_no_line_is_no_phase_and_a_foreign_line_is_the_image_starting() -> None:
    assert el.read_engine_log([]).phase == "none"
    assert el.read_engine_log([LogLine("Matplotlib is building the font cache")]).phase == "image_start"


def test_systemds_own_words_are_not_the_engines() -> None:
    read = el.read_engine_log([LogLine("Started vllm-x.service.", source="unit")])
    assert (read.phase, read.lines) == ("none", 0)


def test_a_bar_that_overwrote_itself_is_read_in_its_last_state() -> None:
    meter = "\r".join(
        f"Capturing CUDA graphs (decode, FULL): {n * 20}%|##| {n}/5 [00:0{n}<00:01,  1.41it/s]" for n in range(6)
    )
    read = el.read_engine_log([LogLine(meter)])
    assert (read.phase, read.done, read.total) == ("graph_capture", 5, 5)


def test_colours_and_secrets_are_taken_out() -> None:
    assert el.clean("\x1b[1;36m(EngineCore pid=7)\x1b[0;0m ok") == "(EngineCore pid=7) ok"
    shown = el.clean("non-default args: {'api_key': ['sesame-open'], 'hf_token': 'hf_" + "a" * 34 + "'}")
    assert "sesame" not in shown
    assert "hf_aaaa" not in shown


def test_the_address_of_a_forwarded_line() -> None:
    text = "(RayWorkerProc pid=321, ip=10.211.0.13) (RayWorkerProc_TP2 pid=321) ERROR boom"
    assert el.origin_address(text) == "10.211.0.13"
    assert el.origin_address("(Worker pid=1) fine") == ""


@pytest.mark.parametrize(
    ("phase", "done", "total", "words"),
    [
        ("load", 3, 10, "loading weights, 3 of 10"),
        ("ray_join", 2, 4, "waiting for Ray nodes, 2 of 4 joined"),
        ("profile", 0, 0, "profiling and compiling"),
    ],
)
def test_progress_in_words(phase: str, done: int, total: int, words: str) -> None:
    assert el.describe_progress(phase, done, total) == words


def test_the_phases_of_the_second_model_runner() -> None:
    lines = [
        "(Core pid=2) INFO 11-03 08:14:22 [gpu_worker.py:289] Using V2 Model Runner",
        "(Core pid=2) INFO 11-03 08:14:23 [model_runner.py:274] Loading model from scratch...",
        "(Core pid=2) INFO 11-03 08:14:25 [model_runner.py:295] Model loading took 15.27 GiB and 2.437157 seconds",
        "(Core pid=2) INFO 11-03 08:14:26 [monitor.py:81] Initial profiling/warmup run took 0.57 s",
        "(Core pid=2) INFO 11-03 08:14:27 [model_runner.py:661] Graph capturing finished in 2 secs, took 0.23 GiB",
    ]
    reached = [el.read_engine_log([LogLine(line) for line in lines[:count]]) for count in range(1, 6)]
    assert [each.phase for each in reached] == ["image_start", "load", "profile", "profile", "graph_capture"]
    assert (reached[-1].facts["model_gib"], reached[-1].facts["graph_gib"]) == (15.27, 0.23)


@pytest.mark.parametrize(
    ("text", "done", "total"),
    [
        ("Loading safetensors checkpoint shards:  37% Completed | 35/94 [01:10<01:58,  2.01s/it]", 35, 94),
        ("Loading pt checkpoint shards:  10% Completed | 3/31 [00:10<01:00,  1.20s/it]", 3, 31),
        ("Multi-thread loading shards:  50% Completed | 57/113 [03:03<02:41,  3.93s/it]", 57, 113),
        ("Loading safetensors using Fastsafetensor loader:   2% Completed | 1/42 [00:03<02:41,  3.93s/it]", 1, 42),
        ("Loading safetensors using Runai Model Streamer:  10% Completed | 3/31 [00:10<01:00,  1.2s/it]", 3, 31),
        ("Loading safetensors using InstantTensor loader:   9% Completed | 13.3G/155G [00:01<00:10, 14.3GB/s]", 9, 100),
    ],
)
def test_each_loader_shows_its_progress(text: str, done: int, total: int) -> None:
    found = el.read_engine_log([LogLine(f"(Worker_TP0 pid=31) {text}")])
    assert (found.phase, found.done, found.total) == ("load", done, total)


def test_a_progress_bar_of_any_kind_is_progress_and_a_heartbeat_is_none() -> None:
    shown = "(EngineCore pid=22) DeepGEMM warmup:  {}%|####5     | {}/2000 [10:00<20:00]"
    beat = "(EngineCore pid=22) INFO 11-20 20:2{}:00 [shm.py:8] Running: 1 reqs, GPU KV cache usage: {}%, hit rate: 4%"
    assert len({el.fingerprint(shown.format(45, 900)), el.fingerprint(shown.format(46, 920))}) == 2
    assert len({el.fingerprint(beat.format(1, 10)), el.fingerprint(beat.format(2, 12))}) == 1
