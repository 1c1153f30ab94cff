"""One part of benchmarks/unfreezing.py for one contestant, in a process of its own.

python benchmarks/unfreezing_case.py PART CONTESTANT ROUNDS FILE
"""

import importlib
import sys

import torch
from unfreezing_contestants import write


def main(part: str, contestant: str, rounds: str, path: str) -> None:
    """Measure, and leave the findings in a file."""
    torch.set_num_threads(1)
    write(importlib.import_module(f"unfreezing_{part}").findings(contestant, int(rounds)), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
