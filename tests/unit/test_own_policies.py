"""A user's own policy that breaks its family's contract is told so, in one line that names it."""

import textwrap

import pytest

from simulator.base import trust
from simulator.base.contracts import ask, is_shipped
from simulator.base.errors import UserError
from simulator.base.plugins import available, build, policy_class
from simulator.commands.check import check as check_file
from simulator.policies.scheduling import SchedulingPolicy
from tests.small_scenario import small_scenario

SCENARIO = small_scenario("stdlib-moe", 4)
HEAD = """
from typing import ClassVar
import numpy as np
from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule
from simulator.policies.dispatch import Rows
from simulator.policies.failures import Change
from simulator.policies.placement import Placed
from simulator.policies.scheduling import Rules
from simulator.policies.speculation import Drafts
from simulator.policies.spilling import Spills
from simulator.policies.topology import Fabric

"""
ROUTING = """
class Own(Frozen):
    def prepare(self, moe, num_layers, rng):
        return Router(moe)

class Router:
    def __init__(self, moe):
        self.moe = moe
    def topk_ids(self, layer, run_lengths, rng):
        tokens = int(run_lengths.sum())
        return {returned}
"""
PLACEMENT = """
class Own(Frozen):
    def place(self, load_LE, num_ranks, rng):
        layers, experts = load_LE.shape
        rank_LP = np.tile(np.arange(experts) * num_ranks // experts, (layers, 1))
        expert_LP = np.tile(np.arange(experts), (layers, 1))
        return {returned}
"""
OVERFLOW = """
class Own(Frozen):
    def admit(self, tokens):
        ids_TJ = tokens.ids_TJ
        return {returned}
"""
REPLICAS = """
class Own(Frozen):
    def prepare(self, copies):
        return Chooser(copies)

class Chooser:
    def __init__(self, copies):
        self.copies = copies
    def choose(self, ids_TK, origins):
        slot_TK = self.copies.slot_EC[ids_TK, 0]
        return {returned}
"""
SPILLING = """
class Own(Frozen):
    def spill(self, pairs_P, rank_P, num_ranks):
        other_X = (rank_P[:1] + 1) % num_ranks
        return {returned}
"""
DISPATCH = """
class Own(Frozen):
    def copies(self, rank_TK, source_T, node_R):
        zeros = np.zeros((len(node_R), len(node_R)))
        return {returned}
"""
BALANCING = """
class Own(Frozen):
    needs_load: ClassVar[bool] = False
    def prepare(self, num_replicas, rng):
        return self
    def choose(self, request, snapshot):
        return {returned}
"""
RULE = """
class Own(Frozen):
    needs_load: ClassVar[bool] = False
    def prepare(self, num_replicas, rng):
        return {returned}
"""
SCHEDULING = """
class Own(Frozen):
    def rules(self):
        return {returned}
"""
FAILURES = """
class Own(Frozen):
    def changes(self, machines, rng):
        return {returned}
"""
REBALANCING = """
class Own(Frozen):
    def looks(self):
        return {returned}
    def decide(self, load, rng):
        return None
"""
SCALING = """
class Own(Frozen):
    startup_s: ClassVar[float] = 9.0
    replaces_failed: ClassVar[bool] = True
    def begin(self, most):
        return 1
    def looks(self):
        return iter([5.0, 10.0])
    def decide(self, loads, most):
        return {returned}
"""
SPECULATION = """
class Own(Frozen):
    def drafts(self):
        return {returned}
"""
ARRIVALS = """
class Own(Frozen):
    concurrency: ClassVar[None] = None
    def arrival_s(self, num_requests, rng):
        return {returned}
"""
LENGTHS = """
class Own(Frozen):
    def draw(self, num_requests, rng):
        ones = np.ones(num_requests, dtype=np.int64)
        return {returned}
"""
CACHING = """
class Own(Frozen):
    def rate_experts(self, uses):
        return {returned}
"""
PREFETCHING = """
class Own(Frozen):
    experts: int = 1
    def prepare(self, earlier_LTK, num_experts):
        return self
    def predict(self, used_LE):
        return {returned}
"""
FAMILIES = {
    "routing": (ROUTING, "Router.topk_ids()", "deployments.0.routing"),
    "placement": (PLACEMENT, "Own.place()", "deployments.0.placement"),
    "overflow": (OVERFLOW, "Own.admit()", "deployments.0.overflow"),
    "replica_choice": (REPLICAS, "Chooser.choose()", "deployments.0.replica_choice"),
    "spilling": (SPILLING, "Own.spill()", "deployments.0.spilling"),
    "dispatch": (DISPATCH, "Own.copies()", "deployments.0.dispatch"),
    "balancing": (BALANCING, "Own.choose()", "deployments.0.balancing"),
    "rule": (RULE, "Own.prepare()", "deployments.0.balancing"),
    "scheduling": (SCHEDULING, "Own.rules()", "deployments.0.scheduling"),
    "failures": (FAILURES, "Own.changes()", "deployments.0.failures"),
    "rebalancing": (REBALANCING, "Own.looks()", "deployments.0.rebalancing"),
    "scaling": (SCALING, "Own.decide()", "deployments.0.scaling"),
    "speculation": (SPECULATION, "Own.drafts()", "deployments.0.speculation"),
    "arrivals": (ARRIVALS, "Own.arrival_s()", "workload.requests.arrivals"),
    "lengths": (LENGTHS, "Own.draw()", "workload.requests.lengths"),
    "caching": (CACHING, "Own.rate_experts()", "deployments.0.offload.caching"),
    "prefetching": (PREFETCHING, "Own.predict()", "deployments.0.offload.prefetching"),
}
OFFLOADED = [
    "deployments.0.cluster=desktop-rtx-4090",
    "deployments.0.parallel={}",
    "deployments.0.offload.slots=4",
]
"""What a deployment needs to ask these policies."""
RIGHT = {
    "routing": "np.tile(np.arange(self.moe.top_k, dtype=np.int16), (tokens, 1))",
    "placement": "Placed(expert_LP.astype(np.int32), rank_LP.astype(np.int32), num_ranks)",
    "overflow": "np.where(ids_TJ % 2, ids_TJ, -1)",
    "replica_choice": "slot_TK.astype(np.int32)",
    "spilling": "Spills(np.array([0]), other_X, pairs_P[:1])",
    "dispatch": "zeros.astype(np.float32)",
    "balancing": "np.int32(0)",
    "rule": "Rule(turns=lambda count: np.arange(count) % num_replicas)",
    "scheduling": "Rules(2048, 64, mixes_phases=True, splits_prompts=True)",
    "failures": "iter([Change(0.5, 'both', (1,), False), Change(2, 'both', (1,), True)])",
    "rebalancing": "iter([0, 0.5, 7])",
    "scaling": "np.int64(loads[-1].replicas + most - 1)",
    "speculation": "Drafts((0.9, 0.5), num_layers=1, launch_s=1e-4)",
    "arrivals": "np.arange(num_requests)",
    "lengths": "(ones * 20, ones)",
    "caching": "uses.earlier_LE * 2",
    "prefetching": "used_LE * 0.5",
}
WRONG = [
    ("routing", "[[0, 1]]", "int16 ids of shape", "list [[0, 1]]"),
    ("routing", "np.zeros((tokens, self.moe.top_k), np.int16)", "distinct in a row", "from 0 to 0"),
    ("placement", "None", "a Placed", "NoneType None"),
    ("placement", "Placed(expert_LP[:, 1:], rank_LP[:, 1:], num_ranks)", "layer 0 lacks", "t 0;"),
    ("placement", "Placed(expert_LP, rank_LP * 0, num_ranks)", "as many slots", "s on rank 0 and"),
    ("placement", "Placed(expert_LP, rank_LP, 99)", "a Placed", "num_ranks is 99;"),
    ("placement", "Placed(expert_LP, rank_LP[1:], num_ranks)", "rank_LP is not of", "a Placed"),
    ("overflow", "ids_TJ > 3", "whole numbers of shape (8, ", "bool of shape (8, "),
    ("overflow", "ids_TJ[1:]", "whole numbers of shape (8, ", "int16 of shape (7, "),
    ("overflow", "ids_TJ - 2", "each -1 or one of its token's ids_TJ", "int16 of shape (8, "),
    ("overflow", "np.tile(ids_TJ[:, :1], 2)", "each id once", "int16 of shape (8, "),
    ("replica_choice", "slot_TK[:1]", "slots of shape (8, ", "int64 of shape (1, "),
    ("replica_choice", "slot_TK * 0 - 1", "-1 exactly where an id is", "from -1 to -1"),
    ("spilling", "None", "Spills of whole numbers", "NoneType None"),
    ("spilling", "Spills(np.array([0]), rank_P[:1], pairs_P[:1])", "other ranks", "Spills"),
    ("spilling", "Spills(np.array([0]), other_X, pairs_P[:1] + 1)", "than a slot has", "Spills"),
    ("dispatch", "zeros - 1", "none below 0", "from -1 to -1"),
    ("balancing", "7", "a whole number from 0 to 1", "int 7"),
    ("rule", "Rule(turns=lambda n: np.full(n, 2))", "8 whole numbers from 0 to 1", "turns(8)"),
    ("rule", "Rule(per_token=-0.5)", "numbers of at least 0", "Rule Rule(per_request=0"),
    ("scheduling", "(8192, 256)", "simulator.policies.scheduling.Rules", "tuple (8192, 256)"),
    ("scheduling", "Rules(0, 64, True, True)", "token_budget must be at least 1 tokens", "got 0"),
    ("scheduling", "Rules(64.0, 64, True, True)", "token_budget must be a whole number", "64.0"),
    ("failures", "iter([7])", "a Change at 0 s or later, of pool 'both'", "int 7"),
    ("failures", "iter([Change(1.0, 'both', (2,), False)])", "replicas 0 to 1", "replicas hold 2;"),
    ("failures", "iter([Change(1.0, 'decode', (0,), False)])", "'both' with", "is 'decode';"),
    ("failures", "(Change(1.0 - n, 'both', (0,), False) for n in (0, 1))", "1 s or", "at_s is 0.0"),
    ("failures", "iter([Change(1, 'both', (1,), False, (3,))])", "'both' with", "gpus hold 3, of"),
    ("failures", "(1 / n for n in (0,))", "failed (", "ZeroDivisionError"),
    ("rebalancing", "[1.0]", "an iterator of seconds", "list [1.0]"),
    ("rebalancing", "iter([-1.0])", "seconds from 0 on", "float -1.0"),
    ("rebalancing", "iter([2.0, 2.0])", "seconds after 2", "float 2.0"),
    ("scaling", "0", "a whole number from 1 to 2", "int 0"),
    ("speculation", "(0.9,)", "Drafts with at most 64", "tuple (0.9,)"),
    ("speculation", "Drafts((1.5,))", "probabilities from 0 to 1", "Drafts(accepted=(1.5,)"),
    ("speculation", "Drafts((0.5,), -1)", "whole numbers from 0 as num_layers", "num_layers=-1"),
    ("speculation", "Drafts((0.5,), 1, 0.5)", "and vocab_size", "vocab_size=0.5"),
    ("speculation", "Drafts((0.5,), 1, 0, -1.0)", "a launch_s of at least 0", "num_layers=1"),
    ("arrivals", "np.arange(num_requests)[::-1]", "never falling", "int64 of shape (5,)"),
    ("arrivals", "np.zeros(2)", "numbers of shape (5,)", "float64 of shape (2,)"),
    ("lengths", "(ones, ones * 0)", "all at least 1", "tuple"),
    ("lengths", "ones", "two arrays of whole numbers", "int64 of shape (5,)"),
    ("caching", "uses.earlier_LE + np.inf", "finite numbers of shape", "float64 of shape"),
    ("prefetching", "used_LE[0]", "finite numbers of shape", "bool of shape"),
    ("routing", "1 / 0", "failed (", "ZeroDivisionError: division by zero"),
]


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """Writes a policy of the user's own, and checks a scenario with it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trust._Allowed, "folder", tmp_path)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    package = f"own_{abs(hash(request.node.name))}"
    (tmp_path / package).mkdir()

    def check(family, returned):
        template, _, key = FAMILIES[family]
        (tmp_path / package / f"{family}.py").write_text(
            textwrap.dedent(HEAD + template.replace("{returned}", returned))
        )
        table = f'{{ kind = "{package}.{family}" }}'
        if family == "failures":
            table = f"[{table}]"
        more = OFFLOADED if ".offload." in key else []
        return check_file(str(tmp_path / "scenario.toml"), [*more, f"{key}={table}"])

    return check


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_keeps_its_contract_is_taken(own, family):
    assert own(family, RIGHT[family]).kind == "scenario"


@pytest.mark.parametrize(("family", "returned", "wanted", "found"), WRONG)
def test_a_policy_that_breaks_its_contract_is_named(own, family, returned, wanted, found):
    with pytest.raises(UserError) as refused:
        own(family, returned)
    said = str(refused.value)
    assert "\n" not in said
    for words in (FAMILIES[family][1], f".{family}.", wanted, found):
        assert words in said


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("np.linalg.inv(np.zeros(3))", "LinAlgError"),
        ("__import__('json').loads('{')", "JSONDecodeError"),
    ],
)
def test_what_fails_is_placed_in_the_users_file_though_others_raised(
    own, tmp_path, returned, error
):
    with pytest.raises(UserError, match=rf"routing\.py, line \d+\): {error}") as refused:
        own("routing", returned)
    assert str(tmp_path) in str(refused.value)


def test_limits_without_what_holds_beyond_them_are_refused(own, monkeypatch):
    template, asked, key = FAMILIES["dispatch"]
    limited = template.replace(
        "    def copies", "    limits: tuple[int, ...] = (64,)\n\n    def copies"
    )
    assert limited != template
    monkeypatch.setitem(FAMILIES, "dispatch", (limited, asked, key))
    with pytest.raises(UserError, match=r"Own\.policy_for\(\) is missing"):
        own("dispatch", RIGHT["dispatch"])


def test_the_projects_own_are_not_looked_at_again():
    def never(found):
        raise AssertionError

    for family in FAMILIES.keys() - {"rule"}:  # balancing, said in another way
        for kind in available(family):
            assert is_shipped(policy_class(family, kind, "test"))
    chunked = build("scheduling", {"kind": "chunked"}, "test")
    assert ask(SchedulingPolicy.rules, chunked, explain=never)
