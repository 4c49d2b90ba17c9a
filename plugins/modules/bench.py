#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bench
short_description: Measure a served endpoint, keep the results and report them
version_added: 0.1.0
description:
  - Sends streamed completions from the control node to an OpenAI-compatible endpoint of vLLM, in a sweep over
    concurrency, with needles in haystacks of any length, and as the replay of a trace.
  - Waiting for one of the engine's slots is separated from prefill; a request that fails is counted, never dropped.
  - Keeps each run as one JSON file under the fingerprint of all that matters (what the engine runs with, the image's
    identity, mods, version, nodes, driver), beside an HTML page that needs no network and the same in Markdown.
  - Runs on the control node, which needs the Python package aiohttp; no host is contacted over SSH.
options:
  spec:
    description: The C(model_spec) of what is served; its C(expected) is compared with.
    type: dict
    required: true
  url:
    description: Where the API is.
    type: str
    required: true
  api_key:
    description: Key of the API; empty for none.
    type: str
    default: ""
  api:
    description: Whether /v1/chat/completions or /v1/completions is measured.
    type: str
    choices: [chat, completions]
    default: chat
  request:
    description: Merged into the body of each completion, e.g. C(chat_template_kwargs).
    type: dict
    default: {}
  stall_seconds:
    description: Seconds without a byte after which a request has failed.
    type: float
    default: 600.0
  sweep:
    description: Whether the sweep is run.
    type: bool
    default: true
  concurrency:
    description: Requests at once, a burst for each number. Empty takes the published ones, or doubles up to the slots.
    type: list
    elements: int
    default: []
  rounds:
    description: How often each burst is repeated; the figures are over all rounds.
    type: int
    default: 1
  input_tokens:
    description: Exact length of each prompt, the chat template included.
    type: int
    default: 10006
  output_tokens:
    description: Length of each answer; the end of sequence is ignored.
    type: int
    default: 1024
  distinct_prompts:
    description: Give each request a prompt of its own, so that no prefix cache helps.
    type: bool
    default: true
  slots:
    description: How many requests the engine runs at once (max-num-seqs); V(0) when that is not known.
    type: int
    default: 0
  profile:
    description:
      - Whose points are measured; empty for none. Each combination of prompt, answer, context and requests at once is
        a point, measured O(runs) times after one run that is not counted, with figures as llama-benchy 0.4.0 defines
        them. V(spark-arena) has the points of Spark Arena's benchmark profiles.
      - A context for which the served length has no room is left out with a sentence; one of O(depth) is refused.
    type: str
    choices: ["", llama-benchy, spark-arena]
    default: ""
  pp:
    description: Tokens of the prompts; empty for those of O(profile).
    type: list
    elements: int
    default: []
  tg:
    description: Tokens of the answers; empty for those of O(profile). The end of sequence is ignored.
    type: list
    elements: int
    default: []
  depth:
    description: Tokens of the contexts before the prompts, as a system message; empty for those of O(profile).
    type: list
    elements: int
    default: []
  runs:
    description: How often each point is measured.
    type: int
    default: 3
  prefix_caching:
    description: Load each context first, and measure the prompt behind it; both are reported.
    type: bool
    default: false
  latency_mode:
    description: >-
      What is taken off the first response as the time of network and server: V(api) is the mean of three questions to
      /v1/models, V(generation) that of three answers of one token, V(none) nothing.
    type: str
    choices: [api, generation, none]
    default: api
  export:
    description: Formats of llama-benchy in which the points are written, in a directory C(export) of the results.
    type: list
    elements: str
    choices: [md, csv, json]
    default: [md, csv, json]
  gates:
    description: >-
      Quality gates that are run: V(needle) hides a pass phrase at several depths, V(answers) asks twelve short
      questions, V(tool_call) and V(reasoning) are canaries of the parsers that the model file names. A gate that does
      not apply is skipped with its reason.
    type: list
    elements: str
    choices: [needle, answers, tool_call, reasoning]
    default: []
  gate_answers_share:
    description: Share of the short questions that must be answered exactly.
    type: float
    default: 0.75
  gate_needle_tokens:
    description: Length of the prompts of the needle gate; cut to what the model serves.
    type: int
    default: 16384
  gate_needle_depths:
    description: Where the pass phrases of the needle gate are hidden, from V(0) to V(1).
    type: list
    elements: float
    default: [0.1, 0.5, 0.9]
  gate_output_tokens:
    description: Most tokens of an answer to a gate; at most half of what the model serves.
    type: int
    default: 4096
  fail_on_gate:
    description: Fail when a gate fails.
    type: bool
    default: false
  needles:
    description: Where pass phrases are hidden.
    type: list
    elements: dict
    default: []
    suboptions:
      tokens:
        description: Exact length of the prompt.
        type: int
        required: true
      depth:
        description: From V(0) (at the beginning) to V(1) (at the end).
        type: float
        default: 0.5
  needle_output_tokens:
    description: Most tokens of an answer about a needle, its reasoning included.
    type: int
    default: 4096
  trace:
    description: File in the mooncake format (JSON lines, also compressed by gzip) to replay; empty for none.
    type: path
    default: ""
  trace_concurrency:
    description: Requests at once where the trace is not replayed by its times.
    type: int
    default: 8
  trace_scheduled:
    description: Whether the trace's times are kept; V(auto) keeps them where there are any.
    type: str
    choices: [auto, "true", "false"]
    default: auto
  trace_speed:
    description: How many times as fast as its times the trace is replayed.
    type: float
    default: 1.0
  trace_limit:
    description: Replay only this many requests from the beginning; V(0) replays all.
    type: int
    default: 0
  trace_block_tokens:
    description: Tokens of a block that a hash of the trace stands for.
    type: int
    default: 512
  aiperf:
    description: Whether AIPerf replays the trace; V(auto) lets it where it is installed and can.
    type: str
    choices: [auto, never, require]
    default: auto
  tokenizer:
    description: Directory on the control node with the model's tokenizer, for AIPerf.
    type: path
    default: ""
  client_overhead:
    description: Measure the client itself first, against a local server that does no work.
    type: bool
    default: true
  image:
    description: Identity of the engine's image.
    type: str
    default: ""
  command:
    description: Arguments with which the head's engine runs.
    type: list
    elements: str
    default: []
  vllm_version:
    description: Version of vLLM, for endpoints that do not report it.
    type: str
    default: ""
  nodes:
    description: Facts of each node that takes part, in rank order; C(driver) is among them.
    type: dict
    default: {}
  results_dir:
    description: Where results are kept, in a directory of each model's name.
    type: path
    required: true
  baseline:
    description: >-
      What regressions are judged by: V(last) is the newest run of the same shape, V(expected) the published figures,
      V(none) nothing, anything else the beginning of a run's name or of a fingerprint.
    type: str
    default: last
  regression_share:
    description: By how much a figure may be worse than the baseline's.
    type: float
    default: 0.1
  fail_on_regression:
    description: >-
      Fail when something is worse by more than O(regression_share), a needle or a gate is lost, or requests newly fail.
    type: bool
    default: false
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
attributes:
  check_mode:
    details: Looks at what is served and measures nothing.
  idempotent:
    description: Each run is a measurement of its own; it reports no change.
    support: N/A
"""

EXAMPLES = r"""
- name: Measure what is served
  gb10.cluster.bench:
    spec: "{{ gb10_plan.spec }}"
    url: "{{ gb10_plan.api_url }}"
    concurrency: [1, 2, 4]
    slots: 6
    results_dir: ~/measurements
  run_once: true
"""

RETURN = r"""
run:
  description: Name of the run, its time and its fingerprint.
  returned: when measured
  type: str
  sample: 20260613T101500Z-75429f413d11
fingerprint:
  description: Digest of all that matters.
  returned: when measured
  type: str
  sample: 75429f413d11
summary:
  description: A line for each concurrency.
  returned: when measured
  type: list
  elements: str
regressions:
  description: A sentence for each thing that is worse than the baseline.
  returned: when measured
  type: list
  elements: str
gates:
  description: Status of each quality gate, V(passed), V(failed) or V(skipped).
  returned: when measured
  type: dict
  sample: {answers: passed, tool_call: skipped}
export:
  description: Paths of the points in llama-benchy's formats, by format.
  returned: when measured
  type: dict
results:
  description: Paths of the results (C(json)) and of the report (C(html), C(md)) on the control node.
  returned: when measured
  type: dict
"""
