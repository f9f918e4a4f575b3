"""`python -m evatok`, and the `evatok` script."""

import sys

from evatok.cli.process import stoppable


def main() -> int:
    """Run the command line of this process."""
    with stoppable():
        from evatok.cli.app import main as run

        return run()


if __name__ == "__main__":
    sys.exit(main())
