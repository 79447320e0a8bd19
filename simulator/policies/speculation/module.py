"""Drafting by a small module beside the model, one token after the other: DeepSeek-V3's multi-token
prediction (arXiv:2412.19437, 2.2), EAGLE (arXiv:2401.15077).
"""

from __future__ import annotations

from simulator.base.quantities import Layers, Seconds, Width
from simulator.policies.speculation import Drafts
from simulator.policies.speculation.ngram import NGram

_LAUNCH_S = 9.1e-5
"""1,200 launches of 80 layers of Qwen2.5-72B took 7.29 ms more than one graph of them, A100
(github.com/pie-project/pie, pull request 348)."""


class Module(NGram):
    """Module of layers like the model's last ones. Its first pass is over all tokens of a step,
    each further one over one token of each sequence, and each ends in the output matrix.

    Published for the first token of DeepSeek-V3's module: 0.85 to 0.90 accepted (arXiv:2412.19437,
    5.4.3).
    """

    layers: Layers = 1
    """Layers of the drafting module, which are like the model's last ones, and placed and routed
    like its first ones."""
    vocab_size: Width | None = None
    """Rows of an output matrix of the module's own (32,000 in EAGLE-3's of Llama 3.1); absent = the
    module uses the model's."""
    launch_s: Seconds = _LAUNCH_S
    """Seconds in which the kernels of one of its layers are launched in each pass: engines capture
    graphs of the model's steps, and launch a module's kernels mostly one by one. 91 microseconds
    are those of Qwen2.5-72B's layers on an A100; 0 where its passes are one graph."""

    def drafts(self) -> Drafts:
        accepted = super().drafts().accepted
        return Drafts(accepted, self.layers, self.vocab_size or 0, self.layers * self.launch_s)
