"""`python -m evatok`."""

import sys

from evatok.cli import main

sys.exit(main())
