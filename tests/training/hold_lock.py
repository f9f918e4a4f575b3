"""Hold the record lock of a file, argument 1, until the input ends."""

import fcntl
import sys

with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
    sys.stdin.read()
