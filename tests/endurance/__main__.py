"""`make endurance`: load, chaos and soak, one after another. Each prints its figures, and what does not hold.

A length of 0 leaves one out.
"""

from __future__ import annotations

import argparse
import sys

from endurance.chaos import chaos
from endurance.figures import say
from endurance.load import load
from endurance.soak import soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="make endurance")
    parser.add_argument("--load", type=float, default=60.0, help="seconds of load")
    parser.add_argument("--chaos", type=float, default=120.0, help="seconds of chaos")
    parser.add_argument("--soak", type=int, default=100_000, help="requests of the soak")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    given = parser.parse_args()
    broken = []
    for program, length in ((load, given.load), (chaos, given.chaos), (soak, given.soak)):
        if length:
            say(f"== {program.__name__}, {length:g}, seed {given.seed}")
            broken += program(length, given.seed).broken
    for what in broken:
        say(f"BROKEN {what}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
