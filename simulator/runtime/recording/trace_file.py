"""Recording of expert choices, and its file, which ``routing = { kind = "replay", trace = ... }``
reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Recording:
    """Choices of a model's routers for some text."""

    topk_ids_LTK: NDArray[Any]
    """Choices, sequence after sequence."""
    seq_lens_Q: NDArray[np.int64]
    """Tokens of each sequence."""
    domain_Q: list[str]
    """Kind of text of each sequence."""
    num_experts: int
    provenance: str
    """Origin: model, text, seed, versions."""

    @property
    def domains(self) -> list[str]:
        """Kinds of text, in order of appearance."""
        return list(dict.fromkeys(self.domain_Q))

    def load(self, domain: str | None = None) -> NDArray[np.float64]:
        """Ratio of each expert's choices to the layer's mean, ``[L, E]``.

        Args:
            domain: one kind of text only.
        """
        keep_T = np.repeat(
            np.array([domain in (None, name) for name in self.domain_Q]), self.seq_lens_Q
        )
        ids_LTK = self.topk_ids_LTK[:, keep_T].astype(np.int64)
        count_LE = np.stack(
            [np.bincount(ids_TK.ravel(), minlength=self.num_experts) for ids_TK in ids_LTK]
        )
        load_LE: NDArray[np.float64] = count_LE / count_LE.mean(axis=1, keepdims=True)
        return load_LE

    @property
    def imbalance(self) -> float:
        """Ratio of a layer's busiest expert to its mean expert, averaged over layers."""
        return float(self.load().max(axis=1).mean())


def write_recording(recording: Recording, path: Path) -> None:
    """Write the ``.npz`` file; the same recording gives the same bytes."""
    id_type = np.uint8 if recording.num_experts <= 1 << 8 else np.int16
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            ids=recording.topk_ids_LTK.astype(id_type),
            seq_lens=recording.seq_lens_Q.astype(np.int32),
            domain=np.array(recording.domain_Q),
            num_experts=np.array(recording.num_experts),
            provenance=np.array(recording.provenance),
        )
