"""What ranks send each other, counted by pairs that send anything, is what a matrix of all pairs
says.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.plugins import available, build
from simulator.policies.messages import Messages
from tests.cases import cases

GPUS_PER_NODE = 4


@st.composite
def matrices(draw):
    """Whole numbers of vectors from rank to rank, many of them none."""
    num_ranks = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    number_SR = rng.integers(1, 100, (num_ranks, num_ranks)).astype(np.float64)
    number_SR *= rng.random((num_ranks, num_ranks)) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    np.fill_diagonal(number_SR, 0.0)
    return number_SR


@cases(60)
@given(matrices(), st.sampled_from([1.0, 7.25, 1 / 3]))
def test_messages_are_the_pairs_that_send_anything(number_SR, unit):
    sent = Messages.from_matrix(number_SR).times(unit)
    assert len(sent.number_M) == np.count_nonzero(number_SR)
    assert np.array_equal(sent.matrix_SR, number_SR * unit)
    assert np.array_equal(sent.reverse().matrix_SR, (number_SR * unit).T)
    pairs = {(int(s), int(r)): number_SR[s, r] for s, r in zip(*np.nonzero(number_SR), strict=True)}
    same = Messages.from_pairs(len(number_SR), dict(reversed(pairs.items()))).times(unit)
    assert np.array_equal(same.matrix_SR, sent.matrix_SR)


@cases(60)
@given(matrices())
def test_ranks_receive_what_is_sent(number_SR):
    node_R = np.arange(len(number_SR)) // GPUS_PER_NODE
    across_SR = number_SR * (node_R[:, None] != node_R)
    sums = Messages.from_matrix(number_SR).sum_by_rank(node_R)
    assert np.array_equal(sums.sent_R, number_SR.sum(axis=1))
    assert np.array_equal(sums.received_R, number_SR.sum(axis=0))
    assert np.array_equal(sums.sent_across_R, across_SR.sum(axis=1))
    assert np.array_equal(sums.received_across_R, across_SR.sum(axis=0))


@cases(60)
@given(matrices(), st.sampled_from(available("topology")))
def test_links_carry_what_crosses_them(tiny, number_SR, topology):
    num_ranks = len(number_SR)
    cluster = tiny.cluster(-(-num_ranks // GPUS_PER_NODE) * GPUS_PER_NODE, GPUS_PER_NODE)
    fabric = build("topology", {"kind": topology}, "test").wire(cluster, num_ranks)
    crossed_L = np.zeros(len(fabric.links))
    for source, destination in zip(*np.nonzero(number_SR), strict=True):
        path = fabric.path_SRH[source, destination]
        crossed_L[path[path >= 0]] += number_SR[source, destination]
    assert np.array_equal(fabric.sum_by_link(Messages.from_matrix(number_SR)), crossed_L)
