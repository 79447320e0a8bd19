"""What every file of `simulator/config/mixers` and `simulator/config/ffns` promises, and those of
`tests/kinds` with them. Kinds are discovered, never listed.

A kind is tried as every shipped model has it; one that no model has is built from the `examples` of
its fields.
"""

import pickle
from functools import cache
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.frozen import validate
from simulator.base.plugins import available, policy_class
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.linear import Linear
from simulator.config.model import ModelSpec, load_model
from simulator.work.context import context_kernels
from simulator.work.flops import matmul_flops_per_token, served_flops
from simulator.work.layout import Layout, shard, uneven_heads
from simulator.work.memory import Precision, cache_size, linear_bytes, weight_bytes
from tests.cases import cases
from tests.kinds.low_rank import LowRank
from tests.kinds.residual import DenseResidual
from tests.kinds.tied import TiedAttention

MODELS = Path(__file__).parents[2] / "workloads" / "models"
BF16 = Precision("bf16", "bf16", "bf16", "bf16", "bf16")
TIED = TiedAttention(kind="tests.kinds.tied", num_heads=16, num_groups=8, head_size=64)
OWN_FFNS = [
    LowRank(kind="tests.kinds.low_rank", rank=64, intermediate_size=4096),
    DenseResidual(
        kind="tests.kinds.residual", dense_size=512, num_experts=8, top_k=2, intermediate_size=256
    ),
]
DENSE = {"kind": "dense", "intermediate_size": 512}
GQA = {"kind": "gqa", "num_heads": 8, "num_kv_heads": 8, "head_size": 64}


@cache
def shipped(family):
    """Every different member of a family in shipped models, and one of each kind that none has."""
    names = sorted(path.stem for path in MODELS.glob("*.toml"))
    every = [one for name in names for one in getattr(load_model(name, "test"), family).values()]
    distinct = {repr(one): one for one in every}
    found = {one.kind for one in every}
    for kind in set(available(family)) - found:
        cls = policy_class(family, kind, "test")
        examples = {
            name: field.examples or []
            for name, field in cls.model_fields.items()
            if field.is_required() and name != "kind"
        }
        if all(examples.values()):
            fields = {name: values[0] for name, values in examples.items()}
            distinct[kind] = validate(cls, {"kind": kind, **fields}, "test")
    return list(distinct.values())


def named(one):
    return one.kind


mixers = pytest.mark.parametrize("mixer", [*shipped("mixers"), TIED], ids=named)
ffns = pytest.mark.parametrize("ffn", [*shipped("ffns"), *OWN_FFNS], ids=named)


def model_of(mixer, ffn, num_layers=2, hidden_size=1024):
    table = {
        "name": "one",
        "hidden_size": hidden_size,
        "vocab_size": 256,
        "mixers": {"mixer": mixer},
        "ffns": {"ffn": ffn},
        "layers": [{"repeat": num_layers, "pattern": [["mixer", "ffn"]]}],
    }
    return validate(ModelSpec, table, "test")


def divisors(number, most=16):
    return [tp for tp in range(1, most + 1) if number % tp == 0]


def holds_linears(linears):
    assert len({linear.name for linear in linears}) == len(linears), "two matrices of one name"
    for linear in linears:
        assert isinstance(linear, Linear)
        assert min(linear.in_features, linear.out_features, linear.copies) >= 1
        assert linear.num_parameters == linear.in_features * linear.out_features * linear.copies


@pytest.mark.parametrize("family", ["mixers", "ffns"])
def test_a_kind_is_called_like_its_file_and_is_tried_here(family):
    untried = set(available(family)) - {one.kind for one in shipped(family)}
    assert not untried, (
        f"{family} of no shipped model: {', '.join(sorted(untried))}; ship a model that has one, or "
        "give each of its required fields `examples`"
    )
    for kind in available(family):
        cls = policy_class(family, kind, "test")
        assert cls.__module__ == f"simulator.config.{family}.{kind}"


@mixers
def test_a_mixers_parameters_are_its_matrices_and_what_is_small(mixer):
    for hidden_size in (512, 1024, 4096):
        linears = mixer.linears(hidden_size)
        holds_linears(linears)
        small = mixer.num_small_parameters(hidden_size)
        assert small >= mixer.norms
        assert mixer.num_parameters(hidden_size) == small + sum(
            one.num_parameters for one in linears
        )
        assert mixer.linears(hidden_size) == linears  # asked again, it answers the same
        assert small < mixer.num_parameters(hidden_size) < mixer.num_parameters(2 * hidden_size)
        assert any(linear.in_features == hidden_size for linear in linears)
        assert any(linear.out_features == hidden_size for linear in linears)


@mixers
def test_tensor_parallelism_that_divides_the_heads_divides_every_split_matrix(mixer):
    linears = mixer.linears(1024)
    assert {"column", "row"} <= {linear.split for linear in linears}
    for tp in (tp for tp in (1, 2, 4, 8) if mixer.split_heads % tp == 0):
        assert uneven_heads(model_of(mixer, DENSE), tp) is None
        for linear in linears:
            rows, columns, copies = shard(linear, tp)
            parts = 1 if linear.split == "whole" else tp
            assert rows * columns * copies * parts == linear.num_parameters, (linear, tp)
    name, heads = uneven_heads(model_of(mixer, DENSE), mixer.split_heads + 1)
    assert (name, heads) == ("mixer", mixer.split_heads)


@mixers
def test_a_mixer_keeps_a_cache_or_a_state(mixer):
    terms = mixer.context_terms()
    assert terms or mixer.state_elements() > 0
    assert mixer.state_elements() >= 0
    assert isfinite(mixer.recurrent_flops_per_token())
    assert (mixer.recurrent_flops_per_token() > 0) == (not terms)
    assert mixer.is_latent == any(term.is_latent for term in terms)
    for term in terms:
        assert min(term.prefill_flops_per_pair, term.decode_flops_per_pair) > 0
        assert 0 <= term.appended_elements <= term.cached_elements_per_entry
        assert min(term.prefill_moved_elements, term.decode_moved_elements) >= 0
        assert term.cached_elements_per_entry > 0
        assert mixer.split_heads % term.num_shards == 0
        assert term.compression >= 1
        assert term.window is None or term.window >= 1
        assert term.num_heads >= term.num_shards


@mixers
def test_heads_that_engines_choose_kernels_by_are_those_in_the_cache(mixer):
    heads = mixer.kv_heads
    if heads is None:
        return
    assert not mixer.is_latent
    (term,) = mixer.context_terms()
    assert heads.number == term.num_shards
    assert 2 * heads.number * heads.size == term.cached_elements_per_entry


@mixers
def test_ranks_share_a_cache_and_never_hold_less_than_their_part(mixer):
    model = model_of(mixer, DENSE)
    whole = cache_size(model, Layout(1, 1, 1), BF16)
    assert whole.bytes_per_token >= 0
    assert whole.bytes_per_sequence >= 0
    assert whole.bytes_for(100_000) > 0
    held = whole
    for tp in divisors(mixer.split_heads)[1:]:
        own = cache_size(model, Layout(tp, 1, 1), BF16)
        for name in ("bytes_per_token", "bytes_per_sequence"):
            assert getattr(whole, name) / tp <= getattr(own, name) * (1 + 1e-12)
            assert getattr(own, name) <= getattr(held, name) * (1 + 1e-12)
        held = own


@mixers
def test_kernels_of_ranks_add_up_to_the_flops_of_a_pair(mixer):
    model = model_of(mixer, DENSE)
    (whole, split) = (
        context_kernels(model, Layout(tp, 1, 1), BF16) for tp in (1, mixer.split_heads)
    )
    assert len(whole) == len(mixer.context_terms()) + (mixer.state_elements() > 0)
    for one, part in zip(whole, split, strict=True):
        assert (one.kind, one.window, one.num_layers) == (part.kind, part.window, 2)
        assert one.prefill_flops == pytest.approx(part.prefill_flops * mixer.split_heads)
        assert one.decode_flops == pytest.approx(part.decode_flops * mixer.split_heads)
        assert one.decode_bytes >= part.decode_bytes >= 0
        assert one.prefill_token_bytes >= part.prefill_token_bytes >= 0


lengths = st.integers(1, 20_000)


@cases(15)
@given(lengths, st.integers(1, 500), lengths)
@mixers
def test_more_tokens_never_take_fewer_flops(mixer, num_input, num_output, more):
    model = model_of(mixer, DENSE)

    def flops(num_input, num_output, num_cached=0):
        arrays = (np.array([count]) for count in (num_input, num_output, num_cached))
        return served_flops(model, *arrays)

    served = flops(num_input, num_output)
    assert served >= num_input * matmul_flops_per_token(model, with_head=False)
    assert served < flops(num_input + more, num_output)
    assert served < flops(num_input, num_output + more)
    assert flops(num_input, num_output, num_input - 1) <= served


@ffns
def test_a_blocks_parameters_are_its_matrices_its_experts_and_what_is_small(ffn):
    for hidden_size in (512, 4096):
        linears, experts = ffn.linears(hidden_size), ffn.experts
        holds_linears(linears)
        small = ffn.num_small_parameters(hidden_size)
        always = small + sum(linear.num_parameters for linear in linears)
        total, active = ffn.num_parameters(hidden_size), ffn.num_active_parameters(hidden_size)
        assert small >= 0
        assert always <= active <= total < ffn.num_parameters(2 * hidden_size)
        if experts is None:
            assert always == active == total
            continue
        each = experts.num_expert_parameters(hidden_size)
        assert each >= sum(one.num_parameters for one in experts.expert_linears(hidden_size)) > 0
        assert total - always == experts.num_experts * each
        assert active - always == experts.top_k * each


@ffns
def test_a_blocks_answers_fit_one_another(ffn):
    linears = ffn.linears(1024)
    routers = [linear for linear in linears if linear.name == "router"]
    if ffn.experts is None:
        assert not routers
        assert ffn.inner_width > 0
    else:
        assert [router.out_features for router in routers] == [ffn.experts.num_experts]
        assert 1 <= ffn.experts.top_k <= ffn.experts.num_experts
        assert ffn.experts == ffn.experts.experts
    # What is split ends in a matrix that reads the inner features.
    inner = {linear.in_features for linear in linears if linear.split == "row"}
    assert inner == ({ffn.inner_width} if ffn.inner_width else set())
    if ffn.is_prunable:
        assert ffn.experts is None


@ffns
def test_ranks_share_a_block_and_experts_make_layers_routed(ffn):
    model = model_of(GQA, ffn)
    assert model.has_experts("ffn") == (ffn.experts is not None)
    assert model.moe == ffn.experts
    assert model.num_moe_layers == (2 if ffn.experts else 0)
    whole, linears = weight_bytes(model, Layout(1, 1, 1), BF16), ffn.linears(1024)
    every = sum(linear.num_parameters for linear in linears) * BYTES_PER_ELEMENT["bf16"]
    assert linear_bytes(linears, 1, "bf16") == every
    for tp in (2, 4, 8):
        own = weight_bytes(model, Layout(tp, 1, 1), BF16)
        assert whole / tp <= own <= whole
        assert every / tp <= linear_bytes(linears, tp, "bf16") <= every
    flops = matmul_flops_per_token(model, with_head=False)
    small = ffn.num_small_parameters(1024)
    if ffn.experts is None or not ffn.experts.has_expert_bias:
        mixer = 2 * model_of(GQA, ffn).mixers["mixer"].num_parameters(1024)
        assert flops == 2 * (2 * (ffn.num_active_parameters(1024) - small) + mixer)


@pytest.mark.parametrize("one", [*shipped("mixers"), *shipped("ffns"), TIED, *OWN_FFNS], ids=named)
def test_a_kind_is_its_table_and_travels_between_processes(one):
    assert validate(type(one), one.model_dump(), "test") == one
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ValueError, match="frozen"):
        one.kind = "another"
