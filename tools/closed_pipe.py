"""Ends a tool quietly when the reader of what it prints has gone.

As after `| head`: Python raises BrokenPipeError then, and once more when it
flushes at exit.
"""

import os
import sys

# What a shell says of a program that a closed pipe has ended.
STATUS = 141


def run(main):
    """Exits with what `main()` returns, or with STATUS if it was cut short."""
    status = None
    try:
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still held back must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or STATUS
    sys.exit(status)
