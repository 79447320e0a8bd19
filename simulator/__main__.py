"""``moesim`` and ``python -m simulator``: the command."""

import sys

from simulator.base.errors import INTERRUPTED
from simulator.base.trust import forget_current_folder


def main() -> None:
    """Run the command; Ctrl-C while it is still being imported ends it as later."""
    try:
        forget_current_folder()  # before anything is imported that is not moesim's own
        from simulator.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
