"""Training tokens per second of one GPU."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import add_name
from simulator.report.stacked_bars import BAR_PIXELS
from simulator.results.formats import number
from simulator.results.training import TrainingResults


class Rate(Figure[TrainingResults]):
    """A bar a deployment."""

    title = "Tokens per second of one GPU"
    section = "How fast"
    definition = "Training tokens per second of one GPU, and model FLOP/s beside them."
    absent = "The run has no rates."
    order = 10
    width = "full"

    def draw(self, results: TrainingResults) -> go.Figure | None:
        names, label, colour = results.deployments, style.labels(results), style.colours(results)
        rates = results.summary["tokens_per_s_per_gpu"].to_list()
        flops = results.summary["flops_per_s_per_gpu"].to_list()
        height = 56 + BAR_PIXELS * len(names)
        drawn = style.figure("Tokens per second of one GPU (tokens/s)", "", height, bargap=0.56)
        for place, name in enumerate(names):
            text = f"{number(rates[place])} tokens/s, {number(flops[place] / 1e12)} TFLOP/s"
            drawn.add_bar(
                orientation="h",
                y=[place],
                x=[rates[place]],
                name=label[name],
                marker={"color": colour[name]},
                text=[text],
                textposition="auto",
                textangle=0,
                hovertemplate=f"{text}<extra>{label[name]}</extra>",
                showlegend=False,
            )
            add_name(drawn, place - 0.24, label[name])
        drawn.update_layout(margin_l=12)
        drawn.update_yaxes(visible=False, range=[len(names) - 0.7, -0.75])
        return drawn.update_xaxes(rangemode="tozero", range=[0, 1.02 * max(rates)], nticks=6)
