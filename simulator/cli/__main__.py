"""``python -m simulator.cli``: the ``moesim`` command."""

from simulator.cli import main

main()
