"""``python -m simulator``: the ``moesim`` command."""

from simulator.cli import main

main()
