"""Each scaling law gives the values that its authors print, and says what it was not fitted on."""

import math

import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.law_file import load_law, measure_size
from simulator.config.laws import ModelSize
from simulator.config.model import load_model

NAMES = sorted(available_files("workloads/laws"))
OF_MIXTURES = [name for name in NAMES if not name.startswith("chinchilla")]
WITH_LOSS = [name for name in NAMES if name != "geometric-mean"]
DENSE_1B = ModelSize(1e9, 1e9, 1e8)
MOE_1B = ModelSize(6e9, 1e9, 1e8, expansion=8.0)


@pytest.mark.parametrize(
    ("parameters", "tokens", "loss"), [(280e9, 300e9, 1.993), (70e9, 1.4e12, 1.936)]
)
def test_gopher_and_chinchilla_by_the_chinchilla_law(parameters, tokens, loss):
    """Worked out with the published coefficients in "chinchilla's wild implications" (2022)."""
    law = load_law("chinchilla", "test").law
    assert law.predict_loss(ModelSize(parameters, parameters), tokens) == pytest.approx(
        loss, abs=1e-3
    )


@pytest.mark.parametrize(
    ("experts", "m", "mu", "n", "nu"),
    [
        (1, 30.3640, -0.1817, 53.9838, -0.1965),
        (2, 27.7982, -0.1780, 66.8401, -0.2065),
        (8, 21.8330, -0.1676, 119.9126, -0.2338),
        (32, 16.5424, -0.1557, 234.6726, -0.2652),
    ],
)
def test_joint_law_reduces_to_its_table_4(experts, m, mu, n, nu):
    law = load_law("joint-moe", "test").law
    for active, tokens in [(1e8, 1e9), (1e9, 1e10), (2.7e9, 8e10)]:
        size = ModelSize(active * experts, active, expansion=float(experts))
        expected = m * active**mu + n * tokens**nu + 1.3637
        assert law.predict_loss(size, tokens) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("budget", "experts", "active"),
    [(1e20, 1, 1.7e9), (1e20, 32, 669e6), (1e21, 8, 3.8e9), (1e22, 1, 18.8e9), (1e22, 32, 12.2e9)],
)
def test_joint_law_has_the_optima_of_its_table_1(budget, experts, active):
    law = load_law("joint-moe", "test").law
    grid = [active * 1.01**step for step in range(-60, 61)]
    best = min(
        grid,
        key=lambda own: law.predict_loss(
            ModelSize(own * experts, own, expansion=float(experts)), budget / 6 / own
        ),
    )
    assert best == pytest.approx(active, rel=0.06)


@pytest.mark.parametrize(
    ("active", "tokens", "granularity", "loss"),
    [
        (100e6, 4.37e9, 8, 3.133),
        (1e9, 28.94e9, 16, 2.491),
        (7e9, 137.6e9, 32, 2.076),
        (70e9, 941.07e9, 32, 1.694),
        (1e12, 7.94e12, 64, 1.367),
    ],
)
def test_fine_grained_law_gives_the_losses_of_its_table_2(active, tokens, granularity, loss):
    """Active parameters are ``12 d^2`` a block, all ``(8 x 64 + 4) d^2`` (section 6.1)."""
    law = load_law("fine-grained-moe", "test").law
    size = ModelSize(active * 516 / 12, active, 0.0, 64.0, float(granularity))
    assert law.predict_loss(size, tokens) == pytest.approx(loss, rel=0.01)


def test_routed_law_has_the_effective_sizes_its_authors_print():
    """5M parameters with 128 experts count as 55M; from 937B parameters on routing stops helping.
    Both within what rounding of the printed coefficients allows.
    """
    law = load_law("routed-s-base", "test")
    size = ModelSize(5e6 * 128, 5e6, expansion=128.0)
    assert law.find_equal_dense(size, 130e9) == pytest.approx(55e6, rel=0.08)
    gains = {
        active: law.find_equal_dense(ModelSize(active * 64, active, expansion=64.0), 130e9) / active
        for active in (1e9, 1e11, 0.8e12, 1.2e12)
    }
    assert sorted(gains.values(), reverse=True) == list(gains.values())
    assert gains[0.8e12] > 1 > gains[1.2e12]


@pytest.mark.parametrize("name", WITH_LOSS)
def test_a_loss_falls_with_parameters_and_tokens(name):
    law = load_law(name, "test").law
    sizes = [DENSE_1B.make_dense(1e9 * 2**step) for step in range(10)]
    by_size = [law.predict_loss(size, 1e11) for size in sizes]
    by_tokens = [law.predict_loss(DENSE_1B, 1e9 * 2**step) for step in range(10)]
    assert by_size == sorted(by_size, reverse=True)
    assert len(set(by_size)) == 10
    assert by_tokens == sorted(by_tokens, reverse=True)
    assert len(set(by_tokens)) == (1 if name.startswith("routed") else 10)


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_model_is_as_good_as_itself(name):
    law = load_law(name, "test")
    assert law.find_equal_dense(DENSE_1B, 1e11) == pytest.approx(1.1e9, rel=1e-6)


@pytest.mark.parametrize("name", OF_MIXTURES)
def test_a_mixture_lies_between_its_active_and_its_total_parameters(name):
    assert 1.1e9 < load_law(name, "test").find_equal_dense(MOE_1B, 130e9) < 6.1e9


def test_a_law_of_dense_models_refuses_mixtures():
    with pytest.raises(UserError, match=r"dense models only; choose one .* joint-moe"):
        load_law("chinchilla", "test").find_equal_dense(MOE_1B, 1e11)


def test_a_law_says_what_it_was_not_fitted_on():
    law = load_law("joint-moe", "test")
    inside = ModelSize(6e9, 1e9, 1e8, expansion=8.0)
    assert law.list_outside(inside, 50e9) == []
    assert len(law.list_outside(inside, 1e12)) == 1
    told = law.list_outside(measure_size(load_model("deepseek-v3", "test")), 14.8e12)
    wanted = ("active parameters", "tokens of training", "experts a token")
    assert all(word in text for word, text in zip(wanted, told, strict=True))
    assert load_law("geometric-mean", "test").list_outside(MOE_1B, 1e11) == []


def test_size_of_mixtral_by_hand():
    """8 experts of three 4096 x 14336 matrices and a router of 8 rows in each of 32 layers."""
    size = measure_size(load_model("mixtral-8x7b", "test"))
    expert, router = 3 * 4096 * 14336, 8 * 4096
    assert size.embedding == 2 * 32000 * 4096
    assert size.total - size.active == 32 * 6 * expert
    assert size.expansion == pytest.approx((8 * expert + router) / (2 * expert + router))
    assert size.granularity == 2
    assert measure_size(load_model("llama-3.1-8b", "test")).is_dense


def test_geometric_mean():
    law = load_law("geometric-mean", "test")
    assert law.find_equal_dense(MOE_1B, 1e9) == pytest.approx(math.sqrt(6.1e9 * 1.1e9))
    assert law.law.predict_loss(MOE_1B, 1e9) is None
