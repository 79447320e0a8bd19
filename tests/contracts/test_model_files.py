"""Every file in ``workloads/models`` keeps the promises of the family. The files are found, never
listed.
"""

from pathlib import Path

import pytest

from simulator.base import plugins
from simulator.base.reading import read_toml
from simulator.config.model import ModelSpec, load_model

FOLDER = Path(__file__).parents[2] / "workloads" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(params=NAMES)
def model(request) -> ModelSpec:
    return load_model(request.param, "test")


def agrees(derived: float, printed: float, rounded_to: float) -> bool:
    """Within 1 %, or within half of the last printed digit where that is coarser."""
    return abs(derived - printed) <= max(0.01 * printed, rounded_to / 2)


def test_name_is_lower_case_and_title_and_sources_are_given(model):
    assert model.name == model.name.lower()
    assert model.title
    assert model.sources
    assert all(source.strip() for source in model.sources.values())
    assert model.max_context_tokens is not None


def test_weight_dtype_is_stated_not_left_to_the_default():
    silent = [name for name in NAMES if "weight_dtype" not in read_toml(FOLDER / f"{name}.toml")]
    assert silent == []


def test_every_mixer_and_ffn_is_used(model):
    mixers, ffns = zip(*model.layer_names, strict=True)
    assert set(model.mixers) == set(mixers) - {"none"}
    assert set(model.ffns) == set(ffns) - {"none"}


def test_derived_counts_agree_with_the_published_ones_or_say_why_not(model):
    published = model.published
    assert published is not None
    does_agree = agrees(
        model.num_parameters, published.total_parameters, published.total_rounded_to
    )
    if published.active_parameters is not None:
        does_agree &= agrees(
            model.num_active_parameters, published.active_parameters, published.active_rounded_to
        )
    assert does_agree == (published.disagreement == ""), (
        model.num_parameters,
        model.num_active_parameters,
    )
    # Even an explained disagreement is a small one: a wrong shape would not pass as a way of
    # rounding.
    assert model.num_parameters == pytest.approx(published.total_parameters, rel=0.04)


def test_a_coarsely_printed_number_is_coarser_than_the_usual_tolerance(model):
    published = model.published
    for printed, rounded_to in (
        (published.total_parameters, published.total_rounded_to),
        (published.active_parameters, published.active_rounded_to),
    ):
        if rounded_to:
            assert printed % rounded_to == 0
            assert rounded_to > 0.02 * printed


def test_experts_come_with_published_active_parameters_and_routing(model):
    if model.moe is None:
        assert model.routing is None
        assert model.num_active_parameters == model.num_parameters
        return
    assert model.published.active_parameters is not None
    assert model.num_active_parameters < model.num_parameters
    assert model.routing_source
    assert model.routing["kind"]


def test_routing_is_a_policy_that_exists(model):
    if model.routing is not None:
        plugins.build("routing", model.routing, model.name)


def test_a_rumour_says_so_where_it_is_read(model):
    if model.is_rumour:
        assert "rumour" in model.title.lower()
        assert "rumour" in model.notes.lower()
