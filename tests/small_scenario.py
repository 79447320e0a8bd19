"""A scenario of five requests on one deployment, for tests of what files may say. Its steps are
small, so that their table is soon filled.
"""


def small_scenario(model, ranks, name="own", more=""):
    """The text of its file.

    Args:
        model: a name, or a path beside the file.
        ranks: attention data-parallel ranks that share the experts, on 8 GPUs.
        more: further lines of the deployment.
    """
    return f"""
[workload]
num_requests = 5
[workload.requests]
arrivals = {{ kind = "poisson", rate_per_s = 50.0 }}
lengths = {{ kind = "fixed", num_input = 100, num_output = 4 }}
[[deployments]]
name = "{name}"
model = "{model}"
cluster = "h100-sxm-8"
parallel = {{ attention_dp = {ranks}, ep = {ranks} }}
scheduling = {{ kind = "chunked", token_budget = 128, max_sequences = 8 }}
{more}
"""


def poisson(rate_per_s, num_input, num_output, num_requests):
    """A workload of equal requests that come at random."""
    requests = {
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
        "lengths": {"kind": "fixed", "num_input": num_input, "num_output": num_output},
        "num_requests": num_requests,
    }
    return {"requests": requests}
