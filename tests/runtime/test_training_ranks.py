"""Real training over several ranks: gradients of every weight equal those of one process with the
whole model, and an MoE layer has four exchanges.
"""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.training.plan import make_training_plan
from simulator.runtime.in_process import InProcessBackend
from simulator.runtime.training.job import make_training_job
from simulator.runtime.training.rank import begin_training, train_step
from simulator.runtime.training.reference import ReferenceTraining, find_largest_error

TOLERANCE = 1e-5
STEPS = 3
SHARED = {"num_shared_experts": 1, "shared_intermediate_size": 24}


@pytest.fixture(scope="module")
def make_job(real):
    def make(model_keys, num_ranks, ep=None, **keys):
        model = {"num_experts": 8, "top_k": 2} | model_keys if ep else model_keys
        table = {
            "name": "tiny",
            "model": real.model(**model),
            "cluster": "h100-sxm",
            "num_gpus": num_ranks,
            "parallel": {"ep": ep} if ep else {},
            "dtype": "fp32",
            "dispatch_dtype": "fp32",
            "zero": 0,
            "overlap_gradients": False,
            "dispatch": {"kind": "per_rank"},
            **({"routing": {"kind": "lognormal"}} if ep else {}),
            **keys,
        }
        training = TrainingSpec(sequence_tokens=6, global_batch=8)
        spec = validate(TrainingDeployment, table, "test")
        return make_training_job(make_training_plan(spec, training, 5, "test", real.folder))

    return make


@pytest.fixture
def in_process():
    """Backends of so many ranks, whose threads end with the test."""
    opened = []

    def open_backend(num_ranks):
        opened.append(InProcessBackend(num_ranks))
        return opened[-1]

    yield open_backend
    for backend in opened:
        backend.close()


def train(backend, job, num_steps=STEPS):
    """Largest error of gradients in any step, and the ranks' results of the last one."""
    backend.apply(begin_training, job)
    reference = ReferenceTraining(job)
    errors = []
    for number in range(num_steps):
        ranks = backend.apply(train_step, number, True)
        loss, wanted = reference.step(number)
        assert sum(rank.loss for rank in ranks) == pytest.approx(loss, rel=TOLERANCE)
        errors.append(find_largest_error(wanted, ranks))
    return max(errors), ranks


@pytest.mark.parametrize(
    ("model_keys", "num_ranks", "ep", "keys"),
    [
        ({}, 1, 1, {}),
        ({}, 2, 2, {}),
        ({}, 4, 4, {"micro_batch": 2}),
        ({}, 4, 2, {}),
        (SHARED, 2, 2, {"micro_batch": 4}),
        ({"top_k": 1}, 4, 4, {}),
        ({}, 2, None, {}),
        ({}, 8, 8, {"routing": {"kind": "uniform"}}),
    ],
    ids=["one", "two", "four", "blocks", "shared", "top one", "dense", "eight"],
)
def test_gradients_equal_those_of_one_process(
    make_job, in_process, model_keys, num_ranks, ep, keys
):
    job = make_job(model_keys, num_ranks, ep, **keys)
    error, ranks = train(in_process(num_ranks), job)
    assert error < TOLERANCE
    # Ranks with the same weights hold the same gradients, to the last bit.
    for other in ranks[1:]:
        for name in other.gradients.keys() & ranks[0].gradients.keys():
            assert np.array_equal(other.gradients[name], ranks[0].gradients[name])


def test_a_mixture_has_four_exchanges_a_layer_and_micro_batch(make_job, in_process):
    job = make_job({"num_layers": 3}, 2, 2, micro_batch=2)
    _, ranks = train(in_process(2), job, 1)
    first, second = ([moment[:3] for moment in rank.moments] for rank in ranks)
    assert first == second
    exchanges = [(m.phase, m.layer) for m in ranks[0].moments if m.is_together and m.layer >= 0]
    forward = [(phase, layer) for layer in range(3) for phase in ("dispatch", "combine")]
    assert exchanges == (forward + forward[::-1]) * (8 // 2 // 2)
    ends = [moment.phase for moment in ranks[0].moments[-2:]]
    assert ends == ["gradients", "optimizer"]


def test_gradients_equal_over_ray_actors(make_job, nodes):
    """Processes of their own, gloo between them."""
    from simulator.config.execution import ExecutionSpec
    from simulator.runtime.ray_backend import RayBackend

    backend = RayBackend(nodes, np.arange(2), ExecutionSpec())
    try:
        for job in (make_job({}, 2, 2, micro_batch=2), make_job(SHARED, 2, 1)):
            error, _ = train(backend, job)
            assert error < TOLERANCE
    finally:
        backend.close()


def test_training_changes_weights_and_lowers_the_loss_of_the_same_tokens(make_job):
    job = make_job({}, 2, 2)
    reference = ReferenceTraining(job)
    losses = [reference.step(0)[0] for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"zero": 1}, "zero = 1 can be simulated on accelerators, .* say zero = 0"),
        ({"dtype": "bf16"}, 'dtype = "bf16" can be simulated.* say dtype = "fp32"'),
        ({"parallel": {"tp": 2, "ep": 2}}, "tp = 2 can be simulated"),
        ({"recompute": "full"}, 'recompute = "full" can be simulated'),
    ],
)
def test_what_is_only_simulated_is_refused(make_job, keys, message):
    with pytest.raises(UserError, match=message):
        make_job({}, 2, 2, **keys)
