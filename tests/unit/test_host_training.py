"""Training steps on a machine's processes, priced by what was measured of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.config.host import load_any_calibration
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.training.plan import choose_host_rates, make_training_plan
from simulator.engine.training import run_training_step
from simulator.step.program import Busy
from simulator.step.training import price_micro_batch
from tests.cases import cases

HERE = {
    "name": "here",
    "model": "stdlib-moe",
    "cluster": "this-machine",
    "num_gpus": 1,
    "dtype": "fp32",
    "dispatch_dtype": "fp32",
    "dispatch": {"kind": "per_rank"},
    "zero": 0,
    "overlap_gradients": False,
}


def plan(sequence_tokens=64, global_batch=8, **keys):
    spec = TrainingDeployment.model_validate(HERE | keys)
    training = TrainingSpec(sequence_tokens=sequence_tokens, global_batch=global_batch)
    return make_training_plan(spec, training, 1, "test", Path())


def step(**keys):
    own = plan(**keys)
    return run_training_step(own, price_micro_batch(own))


@pytest.mark.parametrize("ranks", [1, 2])
def test_passes_are_those_of_serving_times_what_was_measured(ranks):
    own = plan(num_gpus=ranks, parallel={"ep": ranks}, micro_batch=4)
    prices, ratios = price_micro_batch(own), own.placement.calibration.training
    (chunk,) = own.chunks
    forward = prices.list_operations(chunk, "forward")
    backward = prices.list_operations(chunk, "backward")
    assert [(one.phase, one.layer) for one in forward] == [
        (one.phase, one.layer) for one in reversed(backward)
    ]
    exchanges = [one for one in forward + backward if not isinstance(one, Busy)]
    assert len(exchanges) == 4 * own.model.num_moe_layers * (ranks > 1)
    for there, back in zip(forward, reversed(backward), strict=True):
        if isinstance(there, Busy):
            ratio = ratios.backward[there.phase] / ratios.forward[there.phase]
            assert back.seconds_R == pytest.approx(ratio * there.seconds_R)


@cases(10)
@given(st.integers(1, 4), st.sampled_from([16, 64, 100]))
def test_parts_add_up_and_more_sequences_take_longer(micro_batches, tokens):
    few = step(sequence_tokens=tokens, global_batch=2 * micro_batches, micro_batch=2)
    more = step(sequence_tokens=tokens, global_batch=2 * micro_batches + 2, micro_batch=2)
    for found in (few, more):
        assert sum(found.mean_parts.values()) == pytest.approx(found.step_s)
        assert found.mean_parts["gradients"] == 0.0
    assert more.step_s > few.step_s
    assert more.mean_parts["optimizer"] == few.mean_parts["optimizer"]


def test_gradients_are_summed_where_ranks_share_weights():
    parts = step(num_gpus=2, parallel={"ep": 2}).mean_parts
    copies = step(num_gpus=2, parallel={"ep": 1}).mean_parts
    # Experts that both ranks hold are summed too, and each rank updates all of them.
    assert 0.0 < parts["gradients"] < copies["gradients"]
    assert parts["optimizer"] < copies["optimizer"]
    assert parts["dispatch"] > copies["dispatch"] == 0.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dtype": "bf16"}, 'dtype = "bf16" can be simulated on accelerators'),
        ({"overlap_gradients": True}, "overlap_gradients = true .* say overlap_gradients = false"),
        ({"num_gpus": 64}, r"num_gpus \(64\) must be at most the 2 cores"),
        ({"num_gpus": 2, "parallel": {"tp": 2}}, "tp = 2 .* say tp = 1"),
    ],
)
def test_what_was_not_timed_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        plan(global_batch=64, **keys)


def test_a_calibration_without_training_names_the_command_that_measures_it():
    own, host = plan(), load_any_calibration("this-machine", "test")
    older = host.model_copy(
        update={
            "kernels": tuple(
                tables.model_copy(update={"training": None}) for tables in host.kernels
            )
        }
    )
    with pytest.raises(UserError, match="no times of training; measure them with moesim calibrate"):
        choose_host_rates(older, own.spec, own.model, own.placement.layout, "test")
