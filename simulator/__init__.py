"""moesim: which serves your traffic better, a mixture-of-experts model or a dense one, and on what.

Data flows one way: ``spec`` (inert descriptions) -> policies (``arrivals``, ``routing``,
``placement``, ...) -> ``work`` (exact counts) -> ``cost`` (seconds) -> ``plan`` (frozen) ->
``engine`` (virtual time) -> ``records`` -> ``report``.
"""

__version__ = "0.1.0"
