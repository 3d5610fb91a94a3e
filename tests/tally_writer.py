"""A process that counts in a tally until it is killed: `python tally_writer.py FILE CELLS`. It writes to stdout what it
has counted, as one line after each step, so that a test knows what must be there."""

from __future__ import annotations

import sys
from pathlib import Path

from edgegw.limits import tally

STEP = 3


def main() -> None:
    cells = tally.create(Path(sys.argv[1]), int(sys.argv[2]))
    number = 0
    while True:
        cells[number % len(cells)] += STEP
        number += 1
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
