"""``python -m simulator``: the ``moesim`` command."""

from simulator.base.trust import forget_current_folder

forget_current_folder()  # before anything is imported that is not moesim's own

from simulator.cli import main  # noqa: E402

main()
