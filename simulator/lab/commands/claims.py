"""``moesim claims``: what people say of mixtures of experts, tried under many conditions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.base.progress import Progress, show_nothing
from simulator.config.claim import ClaimFile, list_claims, load_claim
from simulator.lab.commands.claim_tests import ClaimTest
from simulator.lab.commands.measured_claims import read_measured, show_part
from simulator.lab.results.claims import (
    ClaimAnswer,
    ClaimsResults,
    Finding,
    reach_verdict,
    tell_claims,
)
from simulator.results.provenance import Provenance


def try_claims(
    names: Sequence[str] = (),
    *,
    seed: int = 1,
    num_seeds: int = 3,
    progress: Progress = show_nothing,
) -> ClaimsResults:
    """Try claims under the conditions that their files name. What was measured of them on this
    machine before (:class:`ClaimMeasurements`) stands beside the verdicts.

    Args:
        names: of files in ``workloads/claims``, or paths; all that ship without any.
        seed: first of the seeds that bands reach over.
        num_seeds: number of seeds, counted on from the first.
        progress: called with the part of the work that is done.

    Raises:
        UserError: if there is no such claim, its file is wrong, or fewer than one seed is asked
            for.
    """
    if num_seeds < 1:
        raise UserError(f"--seeds {num_seeds}: must be at least 1")
    made = Provenance.begin()
    seeds = tuple(range(seed, seed + num_seeds))
    claims = [load_claim(name) for name in names or list_claims()]
    tests: list[ClaimTest] = [
        build("commands.claim_tests", claim.trial, f"{claim.name} [trial]") for claim in claims
    ]
    answers = []
    for claim, test in zip(claims, tests, strict=True):
        began = time.perf_counter()
        finding = test.find(seeds, partial(show_part, progress, claim.name))
        answers.append(_answer(claim, finding, seeds, time.perf_counter() - began))
    headline, reasons = tell_claims(answers)
    run = {
        "name": "What people say of mixtures of experts",
        "claims": [answer.model_dump(mode="json") for answer in answers],
        "seeds": list(seeds),
        "verdict": {"headline": headline, "reasons": reasons},
    }
    return ClaimsResults(run | made.describe(), tuple(answers))


def _answer(
    claim: ClaimFile, finding: Finding, seeds: tuple[int, ...], wall_s: float
) -> ClaimAnswer:
    return ClaimAnswer(
        name=claim.name,
        statement=claim.title,
        asks=claim.asks,
        verdict=reach_verdict(finding.cases),
        **finding._asdict(),
        evidence=claim.evidence,
        maps=claim.maps,
        seeds=seeds,
        wall_s=round(wall_s, 1),
        measured=read_measured(claim),
    )
