"""moesim: which serves your traffic better, a mixture-of-experts model or a dense one, and on what.

Data flows one way: ``config`` (inert descriptions), ``workload`` and ``policies`` -> ``work``
(exact counts) -> ``cost`` and ``step`` (seconds) -> ``deployment`` (frozen) -> ``engine`` (virtual
time) or ``runtime`` (real shards) -> ``results`` -> ``report``.
"""

__version__ = "0.1.0"
