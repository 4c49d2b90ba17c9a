# SPDX-License-Identifier: Apache-2.0
"""What a run of add_model prints.  Pure."""

from __future__ import annotations

from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import REFUSED, UNKNOWN
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.budget import Fit
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.document import unknown_paths
from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue.propose import Proposal


def lines(proposal: Proposal) -> list[str]:
    """Return what a model file holds in short, what one, two and four boxes would give, and what is not known."""
    spec = proposal.spec
    nodes = f"{spec['nodes']} node{'s' if spec['nodes'] != 1 else ''}"
    found = [
        f"{spec['name']}: {spec['repo']} at {spec['revision']}, {float(spec['size_gib']):.1f} GiB, on {nodes} in image "
        f"{spec['image']} (vLLM {proposal.vllm_version}).",
        *(box(each) for each in proposal.fits),
    ]
    found += [f"Unknown: {'.'.join(path)}: {proposal.reasons[path]}" for path in unknown_paths(spec, proposal.reasons)]
    return [*found, *(f"Note: {note}" for note in proposal.notes)]


def box(fit: Fit) -> str:
    """Return what a number of boxes would give, as one line."""
    boxes = f"{fit.nodes} box{'es' if fit.nodes != 1 else ''}: {fit.verdict}"
    if fit.verdict in (REFUSED, UNKNOWN) or fit.kv_cache_tokens is None or fit.concurrency is None:
        return f"{boxes}. {fit.reason}"
    held = f"{fit.concurrency:.2f} sequences of {fit.context} tokens at once"
    return f"{boxes}; {fit.kv_cache_tokens} tokens of cache, {held}."
