"""``moesim claims``: what people say of mixtures of experts, tried under many conditions, and what
was measured of it on this machine, which is kept in the user's cache folder.
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from simulator import __version__
from simulator.base.caches import measured_folder
from simulator.base.errors import UserError
from simulator.base.formats import seconds_text
from simulator.base.machine import name_machine
from simulator.base.partial import whole_file
from simulator.base.plugins import build
from simulator.base.progress import Progress, show_nothing
from simulator.base.reading import read_bytes
from simulator.config.claim import ClaimFile, list_claims, load_claim
from simulator.lab.commands.claim_measurements import ClaimMeasurement
from simulator.lab.commands.claim_tests import ClaimTest
from simulator.lab.results.claims import (
    ClaimAnswer,
    ClaimsResults,
    Measured,
    reach_verdict,
    tell_claims,
)
from simulator.results.provenance import Provenance

_HEXADECIMALS = 12


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
        answers.append(
            ClaimAnswer(
                **dict(finding),
                name=claim.name,
                statement=claim.title,
                asks=claim.asks,
                verdict=reach_verdict(finding.cases),
                evidence=claim.evidence,
                maps=claim.maps,
                seeds=seeds,
                wall_s=round(time.perf_counter() - began, 1),
                measured=read_measured(claim),
            )
        )
    headline, reasons = tell_claims(answers)
    run = {
        "name": "What people say of mixtures of experts",
        "claims": [answer.model_dump(mode="json") for answer in answers],
        "seeds": list(seeds),
        "verdict": {"headline": headline, "reasons": reasons},
    }
    return ClaimsResults(run | made.describe(), tuple(answers))


class ClaimMeasurements:
    """Measurements of claims that are to be taken on this machine.

    Args:
        names: of claims, or paths; all that ship without any. Those that have no ``[real]``, or
            that were measured here before, are left out.

    Raises:
        UserError: if there is no such claim, its file is wrong, or PyTorch is missing.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        claims = [load_claim(name) for name in names or list_claims()]
        self._kept = {claim.name: read_measured(claim) for claim in claims}
        self._missing = {
            claim.name: (claim, _build_measurement(claim))
            for claim in claims
            if claim.real is not None and self._kept[claim.name] is None
        }
        self._expected_s = {
            name: measurement.expect_s() for name, (_, measurement) in self._missing.items()
        }
        self._done: list[str] = []

    def describe(self) -> str:
        """Sentences on what is going to be measured, how long it takes, and what is kept."""
        told = [
            f"{name} was measured on {kept.made}"
            for name, kept in self._kept.items()
            if kept is not None
        ]
        if self._missing:
            parts = [f"{name} {seconds_text(took)}" for name, took in self._expected_s.items()]
            total = seconds_text(sum(self._expected_s.values()))
            told.insert(0, f"measuring on this machine takes about {total} ({', '.join(parts)})")
        elif not told:
            told.append("none of these claims says how it is measured")
        return f"{'; '.join(told)}; kept in {measured_folder()}"

    def measure(self, progress: Progress = show_nothing) -> None:
        """Take them one after the other, and keep each when it is there.

        Raises:
            UserError: if something that a claim's file names cannot run for real.
        """
        for name, (claim, measurement) in self._missing.items():
            began_s = time.perf_counter()
            trial = measurement.measure(partial(show_part, progress, f"{name}, measured"))
            day = datetime.date.today().isoformat()
            today = f"{day}, moesim {__version__}, torch {version('torch')}"
            measured = Measured(
                **trial._asdict() | {"made": trial.made or today},
                command=measurement.command,
                machine=name_machine(),
                took_s=round(time.perf_counter() - began_s, 1),
            )
            file = _find_file(claim)
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as partial_file:
                partial_file.write_text(measured.model_dump_json(indent=1), encoding="utf-8")
            self._done.append(name)

    def tell_kept(self) -> str:
        """Say what is kept of measurements that were stopped."""
        if not self._done:
            return "stopped; no measurement was done, and nothing was written"
        return (
            f"stopped; kept what was measured of {', '.join(self._done)}: the same command goes on "
            "from there"
        )


def read_measured(claim: ClaimFile) -> Measured | None:
    """Read what was measured of a claim on this machine by the same table ``[real]``, with the
    scenario and the models that it names; ``None`` where nothing was.

    Raises:
        UserError: if ``[real]`` is wrong, or names what does not exist.
    """
    if claim.real is None:
        return None
    with suppress(UserError, ValidationError):  # none, or an earlier version's
        kept = Measured.model_validate_json(read_bytes(_find_file(claim)))
        if kept.machine == name_machine():
            return kept
    return None


def _find_file(claim: ClaimFile) -> Path:
    identity = _build_measurement(claim).identify()
    digest = hashlib.sha256(identity.encode()).hexdigest()[:_HEXADECIMALS]
    return measured_folder() / f"claim-{claim.name}-{digest}.json"


def _build_measurement(claim: ClaimFile) -> ClaimMeasurement:
    assert claim.real is not None
    measurement: ClaimMeasurement = build(
        "commands.claim_measurements", claim.real, f"{claim.name} [real]"
    )
    return measurement


def show_part(
    progress: Progress, what: str, name: str, done: int, total: int | None, best: str = ""
) -> None:
    """Show progress of the part ``name`` of something."""
    progress(f"{what}: {name}", done, total, best)
