"""Experts and ranks: how evenly they are loaded, layer by layer."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from simulator.base.findings import Finding
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import (
    SKEW,
    WHICH,
    add_curve,
    draw_imbalance,
    find_metric,
    find_values,
    grid,
    heading,
    load_map,
    shared_heading,
)
from simulator.results.folder import Results

_NO_RANKS = "No deployment in this run recorded its ranks (a dense model has no experts to spread)."


class _Experts(Figure[Results]):
    section = "Experts and ranks"


class ExpertLoad(_Experts):
    """A heat map a mixture-of-experts deployment: layer by logical expert."""

    title = "Load of each expert"
    definition = (
        "Tokens that each logical expert gets over the mean of its layer: red is popular, "
        "blue is idle, and the scale is the same everywhere."
    )
    absent = "No deployment in this run recorded routed experts."
    order = 40

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label = style.labels(results)
        return {
            label[str(name)]: load_map(grid(table, "layer", "expert", "load"), "Expert", "tokens")
            for name, table in results.experts.groupby("deployment", sort=False)
        }

    def find(self, results: Results) -> Finding | None:
        return find_values(
            results, "figure.expert", results.experts.groupby("deployment")["load"].max()
        )


class Imbalance(_Experts):
    """A curve a deployment over layers with its skew, a plot a phase."""

    title = "Imbalance between ranks, layer by layer"
    definition = (
        "Token-expert pairs on the busiest rank over the mean rank, in one step; 1.0 is even. "
        f"{SKEW}"
    )
    absent = _NO_RANKS
    order = 41

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for phase, of_phase in results.ranks.groupby("phase", sort=False):
            ratios = {}
            for name, own in of_phase.groupby("deployment", sort=False):
                pairs = own.groupby("layer")["num_pairs"]
                ratios[str(name)] = pairs.max() / pairs.mean()
            drawn = draw_imbalance(results, str(phase), ratios)
            plots[shared_heading(results, list(ratios), str(phase))] = drawn
        return plots

    def find(self, results: Results) -> Finding | None:
        return find_values(results, "figure.ranks", _decode_ratios(results).groupby(level=0).mean())


def _decode_ratios(results: Results) -> pd.Series:
    """Pairs of the fullest rank over the mean, by deployment and layer of its decode step."""
    pairs = results.ranks[results.ranks["phase"] == "decode"]
    layers = pairs.groupby(["deployment", "layer"])["num_pairs"]
    return layers.max() / layers.mean()


class RankLoad(_Experts):
    """A heat map a deployment and phase: layer by rank."""

    title = "Load of each rank"
    definition = (
        "Token-expert pairs computed on each rank over the mean of its layer, "
        "in one step; every layer waits for its reddest rank. Few tokens are uneven by chance: "
        f"the plot of the imbalance says by how much. {WHICH}"
    )
    absent = _NO_RANKS
    order = 42

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for (name, phase), table in results.ranks.groupby(["deployment", "phase"], sort=False):
            pairs = pd.DataFrame(grid(table, "layer", "rank", "num_pairs"))
            load = pairs.div(pairs.mean(axis=1), axis=0).to_numpy()
            plots[heading(results, str(name), str(phase))] = load_map(
                load, "Rank", "token-expert pairs"
            )
        return plots

    def find(self, results: Results) -> Finding | None:
        return find_values(results, "figure.rank", _decode_ratios(results).groupby(level=0).max())


class Overflow(_Experts):
    """A curve a deployment of what is dropped, and a dotted one of what goes elsewhere."""

    title = "Choices of experts that found no room, layer by layer"
    definition = (
        "Share of the token-expert pairs of each MoE layer that were dropped; dotted, where any: "
        "that another expert computed than the one that was chosen. Counted over all batches of "
        "the run where ranks were simulated, otherwise over some of them."
    )
    absent = "No deployment in this run bounds its experts (overflow)."
    order = 43

    def draw(self, results: Results) -> go.Figure | None:
        drawn = style.figure("MoE layer (index)", "Share of token-expert pairs (%)", 260)
        for name in results.deployments:
            found = results.facts(name).get("overflow_by_layer") or {}
            for key, words, dash in (
                ("dropped", "dropped", "solid"),
                ("rerouted", "to next choices", "dot"),
            ):
                shares, is_first = found.get(key, ()), key == "dropped"
                if found and (is_first or any(shares)):
                    said = f"%{{y:.3~g}} % {words}, layer %{{x}}"
                    y, line = [round(100 * share, 2) for share in shares], {"dash": dash}
                    add_curve(drawn, results, name, said, line=line, x0=0, y=y, showlegend=is_first)
        return drawn if drawn.data else None

    def find(self, results: Results) -> Finding | None:
        return find_metric(results, "figure.dropped", "dropped_share")


class ExpertHits(_Experts):
    """A curve a deployment that offloads experts."""

    title = "Experts found in the GPU's memory"
    definition = (
        "Share of its experts that one sequence finds there, by a replay of the deployment's "
        "routing; the others are brought or computed below."
    )
    absent = "No deployment in this run offloads experts."
    order = 44

    def draw(self, results: Results) -> go.Figure | None:
        drawn = style.figure("MoE layer (index)", "Share found (%)", 260)
        for name in results.deployments:
            if hits_L := results.facts(name).get("hits_by_layer"):
                y = [round(100 * share, 1) for share in hits_L]
                add_curve(drawn, results, name, "%{y:.3~g} %, layer %{x}", x0=0, y=y)
        return drawn.update_yaxes(range=[0, 100]) if drawn.data else None

    def find(self, results: Results) -> Finding | None:
        hits = {name: results.facts(name).get("hits_by_layer") for name in results.deployments}
        means = {name: sum(hits_L) / len(hits_L) for name, hits_L in hits.items() if hits_L}
        return find_values(results, "figure.hits", means)
