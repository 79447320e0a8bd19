"""Times of a machine: tables interpolated between what was measured, cores that ranks share, and
training on its processes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.config.host import ExchangeTable, MatrixTable, load_any_calibration
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.fits import fits_of
from simulator.deployment.notes import notes_of
from simulator.deployment.training.plan import choose_host_rates, make_training_plan
from simulator.engine.by_ranks import SharedCores
from simulator.engine.probe import forecast, make_even_batch
from simulator.engine.training import run_training_step
from simulator.step.prices import Prices
from simulator.step.program import Busy
from simulator.step.training import price_micro_batch
from tests.cases import cases
from tests.parts import freeze

ROWS, SIZES, WORKING = (1, 8, 64), (1024, 65536), (1 << 20, 1 << 26)


def table(seconds=None):
    rng = np.random.default_rng(0)
    values = rng.uniform(1e-6, 1e-3, (2, 2, 3)) if seconds is None else seconds
    return MatrixTable(
        kind="measured",
        source="a test",
        rows=ROWS,
        sizes=SIZES,
        working_bytes=WORKING,
        seconds=values.tolist(),
    )


def test_what_was_measured_is_given_back():
    found = table()
    for w, working in enumerate(WORKING):
        for s, size in enumerate(SIZES):
            assert found.seconds_for(np.array(ROWS), size, working) == pytest.approx(
                found.seconds[w][s]
            )


@given(st.floats(1, 64), st.floats(1024, 65536), st.floats(1 << 20, 1 << 26))
def test_between_measurements_it_lies_between_them(rows, size, working):
    found = table()
    low, high = np.min(found.seconds), np.max(found.seconds)
    assert low * 0.999 <= found.seconds_for(np.array([rows]), size, working)[0] <= high * 1.001


def test_no_rows_take_no_time_and_more_than_was_measured_grows_in_proportion():
    found = table()
    assert found.seconds_for(np.array([0]), 1024, 1 << 20)[0] == 0.0
    last = found.seconds[0][0][-1]
    assert found.seconds_for(np.array([640]), 1024, 1 << 20)[0] == pytest.approx(10 * last)
    assert found.seconds_for(np.array([64]), 10 * 65536, 1 << 20)[0] == pytest.approx(
        10 * found.seconds[0][1][-1]
    )


def test_an_exchange_is_linear_between_measurements_and_goes_on_beyond_them():
    exchange = ExchangeTable(
        kind="measured", source="a test", num_bytes=(0.0, 100.0, 200.0), seconds=(1.0, 2.0, 4.0)
    )
    assert exchange.latency_s == 1.0
    assert exchange.seconds_for(np.array([0.0, 50.0, 150.0, 300.0])).tolist() == [
        0.0,
        0.5,
        2.0,
        5.0,
    ]


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=6), st.integers(1, 6))
def test_shared_cores_are_never_idle_while_there_is_work_for_them(seconds, num_cores):
    env = simpy.Environment()
    cores = SharedCores(env, num_cores)
    ends = []

    def rank(number, duration_s):
        yield cores.work(duration_s)
        ends.append((number, env.now))

    for number, duration_s in enumerate(seconds):
        env.process(rank(number, duration_s))
    env.run()
    end_s = dict(ends)
    bound_s = max(max(seconds), sum(seconds) / num_cores)
    assert bound_s * (1 - 1e-6) <= env.now
    if len(seconds) <= num_cores:
        assert [end_s[i] for i in range(len(seconds))] == pytest.approx(seconds)
    assert env.now <= sum(seconds) / num_cores + max(seconds) + 1e-6
    assert all(end_s[i] >= seconds[i] * (1 - 1e-6) for i in range(len(seconds)))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    for name, ffn in (
        ("moe", 'kind = "moe", num_experts = 8, top_k = 2, intermediate_size = 512'),
        ("dense", 'kind = "dense", intermediate_size = 2048'),
    ):
        (folder / f"{name}.toml").write_text(
            "hidden_size = 256\nvocab_size = 64\n"
            f'layers = [{{ repeat = 2, pattern = [["a", "f"]] }}]\nffns.f = {{ {ffn} }}\n'
            'mixers.a = { kind = "gqa", num_heads = 4, num_kv_heads = 4, head_size = 64 }\n'
        )

    def plan(model="moe", num_ranks=2, **keys):
        table = {
            "name": model,
            "model": f"{model}.toml",
            "cluster": f"this-machine-{num_ranks}",
            "weight_dtype": "fp32",
        }
        if model == "moe":
            table |= {
                "parallel": {"attention_dp": num_ranks, "ep": num_ranks},
                "routing": {"kind": "uniform"},
            }
        else:
            table |= {"parallel": {"tp": num_ranks}}
        return freeze({**table, **keys}, 1, folder)

    return plan


def seconds_of(plan, sequences, new=1, context=0):
    dp = plan.placement.layout.attention_dp
    [times] = forecast(plan, [(make_even_batch([sequences // dp] * dp, new, context), 0)])
    return times


def test_ranks_beyond_the_cores_share_them(local):
    plan = local(num_ranks=4)
    assert plan.placement.calibration.shared_cores == plan.placement.calibration.host.num_cores
    assert local(num_ranks=2).placement.calibration.shared_cores is None


def test_pruned_blocks_store_less_and_are_priced_from_measured_products(local):
    whole, pruned = (
        local("dense"),
        local("dense", pruning={"kind": "unstructured", "sparsity": 0.95}),
    )
    assert pruned.serving.capacity.weights_bytes < 0.5 * whole.serving.capacity.weights_bytes
    assert seconds_of(pruned, 1).phases["dense"] != seconds_of(whole, 1).phases["dense"]


ROWS_LEFT = {"kind": "unstructured", "sparsity": 0.9, "format": "bitmap"}
ON_H100 = {"cluster": "h100-sxm-2"}


@pytest.mark.parametrize(
    ("model", "keys", "said"),
    [
        ("dense", {"pruning": ROWS_LEFT}, "on a processor what is left is stored row by row"),
        ("dense", {**ON_H100, "pruning": {"kind": "two_four"}}, "nobody has published"),
        ("moe", {"pruning": {"kind": "two_four"}}, "has none; leave it out"),
        ("moe", {"weight_dtype": "int8"}, 'weight_dtype = "int8" was not timed .* "fp32"'),
        ("moe", {"expert_dtype": "fp8"}, 'expert_dtype = "fp8" was not timed .* "fp32"'),
        ("dense", {"weight_dtype": "mxfp4"}, 'weight_dtype = "mxfp4" was not timed'),
        ("dense", {"compute": {"kind": "roofline"}}, "'roofline' needs shares"),
        ("dense", {"communication": {"kind": "alpha_beta"}}, "leave communication out"),
        ("dense", {**ON_H100, "compute": {"kind": "host"}}, "'host' needs a calibration"),
    ],
)
def test_what_was_not_measured_is_refused_by_its_key(local, model, keys, said):
    with pytest.raises(UserError, match=said):
        local(model, **keys)


def test_a_number_of_ranks_that_was_not_measured_is_refused(local):
    host = local("dense").placement.calibration.host
    with pytest.raises(UserError, match=r"16 ranks .* moesim calibrate cpu --ranks 16"):
        host.choose_tables(16, 1.0).collectives  # noqa: B018


def test_formats_that_are_priced_as_what_was_timed_are_noted(local):
    noted = {one.kind: one.facts for one in notes_of(local("moe", weight_dtype="bf16"))}
    assert noted["note.other_formats"]["others"] == ["bf16"]
    assert "note.other_formats" not in {one.kind for one in notes_of(local("moe"))}
    fits = fits_of(local("moe", weight_dtype="bf16"))
    assert {"fp32 matrices", "fp32 experts"} <= set(fits)  # what was measured, by its own name


def test_nothing_is_added_up_by_one_rank_nor_where_there_is_nothing(local):
    comm = local("dense").placement.comm
    table = comm.rates.collectives.all_reduce
    for nothing in (comm.all_reduce(1e6, (0,)), comm.all_reduce(0.0, (0, 1))):
        assert nothing.latency_s == 0
        assert nothing.bytes_SR.sum() == 0
    both = comm.all_reduce(1e6, (0, 1))
    assert both.latency_s == table.latency_s
    assert both.bytes_SR.tolist() == [[0, 1e6], [1e6, 0]]
    assert set(both.busy_s) == {table.seconds_for(np.array([1e6]))[0]}


def test_blocks_are_priced_by_the_values_that_they_touch(local):
    """With seconds of every amount, of which a machine's fit may leave some out."""
    compute, rows = local().placement.compute, np.array([0, 3, 10])
    fits = {
        name: getattr(compute.rates.tables, name).model_copy(
            update={"seconds": {"call": 1e-6, "values": 2e-9, amount: 3e-9}}
        )
        for name, amount in (("mixer", "heads"), ("ffn", "hidden"), ("router", "scores"))
    }
    tables = compute.rates.tables.model_copy(update=fits)
    compute = replace(compute, rates=replace(compute.rates, tables=tables))
    for found, priced in (
        (compute.mixer_s(rows, 256, 64), tables.mixer.total(values=rows * 256, heads=rows * 64)),
        (compute.ffn_s(rows, 256, 512), tables.ffn.total(values=rows * 256, hidden=rows * 512)),
    ):
        assert found == pytest.approx(np.where(rows > 0, priced, 0.0), rel=1e-12)
    priced = tables.router.total(values=rows * 256, scores=rows * 8)
    assert compute.router_s(rows, 256, 8) == pytest.approx(priced, rel=1e-12)


def test_rows_are_packed_by_their_bytes(local):
    compute = local().placement.compute
    choices, rows = np.array([6.0, 20.0]), np.array([3.0, 10.0])
    pack_s, unpack_s = compute.pack_s(choices, rows, 256)
    num_bytes = rows * 256 * 4  # of fp32, in which this machine computes
    assert compute.rates.host.dtype == "fp32"
    pack = compute.rates.tables.pack
    assert pack_s == pytest.approx(pack.total(choices=choices, bytes=num_bytes), rel=1e-12)
    assert unpack_s == pytest.approx(compute.rates.tables.unpack.total(bytes=num_bytes), rel=1e-12)


def test_each_layer_is_packed_by_rows_of_its_own(local):
    experts, tokens = Prices(local().placement, 64).experts, np.array([40, 7])
    places = [(0, 0), (1, 0), (0, 500)]
    together = [step.pack_R.tolist() for step in experts.steps(tokens, places)]
    assert together == [experts.steps(tokens, [one])[0].pack_R.tolist() for one in places]
    assert len(set(map(tuple, together))) > 1


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
