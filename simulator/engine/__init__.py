"""Execution of deployments in virtual time. SimPy owns the clock; compiled code batches requests
and, at the ``step`` fidelity, loops over steps.

What a step holds: ``state`` (records), ``queue``, ``cache``, ``admission``, ``batching``. What it
costs: ``table`` and ``experts_table`` where steps are looked up, ``by_ranks`` and ``fabric`` where
every rank is simulated, ``step_log`` for its row. Who takes steps: ``pool`` (replicas behind a
balancer), ``loop`` (their events, and caches on their way between pools), ``timeline`` (a run, with
``loop_state`` and ``result_rows``). What changes meanwhile: ``changes`` (failures),
``replica_states``, ``scaling``, ``rebalancing`` and ``moving_experts``. Links that several use:
``links``, ``carried_caches``. A run in parts: ``shards``. Steps for themselves: ``probe``,
``audit``; ``training`` has passes instead of requests.
"""
