"""An explanation made up from the shares of a made-up run."""

from simulator.results.explained import PIECES

_SHARES = {
    "attention": 0.2,
    "dense": 0.05,
    "experts": 0.25,
    "chance": 0.04,
    "skew": 0.06,
    "unevenness": 0.02,
    "links": 0.08,
    "busiest_link": 0.03,
    "collectives": 0.02,
    "latency": 0.1,
    "host": 0.15,
}
_OF_EXPERTS = ("experts", "chance", "skew", "links", "busiest_link")


def explanation_of(deployments):
    """What run.json says of deployments, by their facts."""
    return {name: _explain(facts["is_moe"]) for name, facts in deployments.items()}


def _explain(is_moe):
    shares = {name: share for name, share in _SHARES.items() if is_moe or name not in _OF_EXPERTS}
    waterfall = {
        "pool": "both",
        "token": "output",
        "token_s": sum(0.03 * share for share in shares.values()),
        "pieces": {name: 0.03 * shares[name] for name in PIECES if name in shares},
        "prompts": {name: 0.01 * shares[name] for name in PIECES if name in shares},
        "limits": {"memory": 0.5, "latency": 0.3, "network": 0.2},
        "doubled": {"memory": 0.25, "latency": 0.15, "network": 0.08},
        "hidden_s": 0.0,
        "layers_s": [0.003 / 32] * 32 if is_moe else [],
        "ranks": [1.2, 0.8, *[1.0] * 6] if is_moe else [],
    }
    tried = [
        {
            "text": "wires twice as fast",
            "overrides": ["deployments.0.network_speed=2.0"],
            "value": 0.02,
            "gain": 0.2,
            "band": [0.1, 0.3],
            "reason": "",
            "resource": "network",
            "offered_by": None,
        }
    ]
    changes = {"metric": "tpot_p50_s", "value": 0.025, "stretch": [], "num_requests": 400}
    queue = {"share": 0.02, "limited_by": "kv_cache"}
    return {"waterfalls": [waterfall], "queue": queue, "changes": {**changes, "tried": tried}}
