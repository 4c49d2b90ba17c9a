#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dynamo_bench
short_description: Plan a benchmark on Kubernetes, and compare its figures with the published ones
version_added: 0.2.0
description:
  - V(plan) returns the objects that stage a trace and replay it with AIPerf; the deadline comes from the trace.
  - V(fresh) deletes the workers that served a former measurement, for their caches hold its prompts; V(mark) marks
    those that are about to serve this one. Neither touches the workers of a job that runs.
  - V(read) reads the figures in the log of the job that has ended, prints them beside the published row and keeps them.
    A run that differs from the published one is labelled and not judged.
options:
  step:
    description: What is done.
    type: str
    choices: [plan, fresh, mark, read]
    required: true
  trace:
    description: File in the mooncake format on the control node, also compressed by gzip.
    type: path
    required: true
  requests:
    description: How many requests from the beginning of the trace are replayed; V(0) for all.
    type: int
    default: 400
  concurrency:
    description: Requests at once; V(0) for the published row's.
    type: int
    default: 0
  deadline_seconds:
    description: Deadline of the job; V(0) computes it.
    type: int
    default: 0
  aiperf:
    description: Version of AIPerf.
    type: str
    default: 0.8.0
  share:
    description: By how much a figure may be off the published one.
    type: float
    default: 0.1
  results_dir:
    description: Directory on the control node for the results.
    type: path
    default: ""
extends_documentation_fragment:
  - gb10.cluster.attributes.controller
  - gb10.cluster.kubernetes
  - gb10.cluster.kubernetes.target
"""

EXAMPLES = r"""
- name: Plan the benchmark
  gb10.cluster.dynamo_bench:
    step: plan
    specs: "{{ specs }}"
    target: agg-b200-chat-mtp
    settings: {namespace: ultra}
    trace: trace.jsonl
"""

RETURN = r"""
trace:
  description: The objects that hold the trace.
  returned: when planned
  type: list
  elements: dict
job:
  description: The job.
  returned: when planned
  type: dict
graph:
  description: Name of the deployment.
  returned: when workers were looked at
  type: str
workers:
  description: The workers that were deleted, or marked.
  returned: when workers were looked at
  type: list
  elements: str
comparison:
  description: C(name), C(measured), C(published) and C(verdict) of each figure.
  returned: when read
  type: list
  elements: dict
unlike:
  description: Why the run is not the published one.
  returned: when read
  type: list
  elements: str
results:
  description: The file that was kept.
  returned: when read
  type: str
"""
