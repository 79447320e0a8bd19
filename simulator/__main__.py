"""``moesim`` and ``python -m simulator``: the command."""

import sys


def main() -> None:
    """Run the command; Ctrl-C or SIGTERM while it is still being imported ends it as later."""
    try:
        from simulator.base.trust import forget_current_folder
        from simulator.runtime.stopping import stop_on_signal

        with stop_on_signal():
            forget_current_folder()  # before anything is imported that is not moesim's own
            from simulator.cli import main as run

        run()
    except (KeyboardInterrupt, Exception) as error:
        from simulator.base.errors import INTERRUPTED
        from simulator.runtime.stopping import find_interrupts

        if not any(find_interrupts(error)):
            raise
        sys.stderr.write("stopped; nothing was written\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
