"""`GradualUnfreezing` beside Lightning's BackboneFinetuning and finetuning-scheduler.

    python benchmarks/unfreezing.py [--only ranks resume schedulers modes speed] [--rounds 5]

The same blocks at the same epochs for all, on the CPU, one thread a process. Every contestant runs
every part in a process of its own; whatever it raises stands in the table. A choice of parts is
printed and not written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from rich.progress import Progress
from side_by_side import publish
from unfreezing_contestants import BACKBONE, CONTESTANTS, SCHEDULER

PARTS = ("ranks", "resume", "schedulers", "modes", "speed")
TITLE = "Gradual unfreezing: ranks, restarts, schedulers, BatchNorm, steps, speed"
NOTES = f"""\
All open the same blocks at the starts of the same epochs, top first ({BACKBONE}: all at once with
the first), under SGD with momentum 0.9 and weight decay 1e-3; small networks of a stem and two
layers unless named. {BACKBONE} of lightning {version("lightning")}: optimiser over the parameters
that require gradients, backbone rate aligned with the head's every epoch. {SCHEDULER}
{version("finetuning-scheduler")}: `epoch_transitions_only=True`, `restore_best=False`, rates
written into the schedule, `apply_lambdas_new_pgs=True`, `allow_untested=True` (by default it
refuses SequentialLR and ChainedScheduler); its way to give a phase a scheduler of its own
(`new_lr_scheduler`) is another plan and not measured.

- ranks: two gloo processes, the largest difference of a parameter between them from each thaw to
  the next, and at the end; GroupNorm, fixed batches, 8 images a process against 16 in one.
- resumed: fixed batches from a loader whose position is saved; without callback the resumed run is
  bitwise the uninterrupted one. Trainable is compared in the first batch after resuming.
- schedulers: the rate of every trainable parameter before every update, by name.
- BatchNorm: largest changes over two epochs of head-only training with a validation after each,
  statistics warm before; "features by other examples" is the change of one example's features
  when the rest of its batch is replaced, in the modes of a training step.
- steps: ratios by pair, median, lowest and highest; by hand is a forward pass of the backbone
  without gradients and the head's forward, backward and SGD update, on a copy in the same modes.
- whole schedule: `trainer.fit` without checkpoints, in turn, after a round that does not count;
  ratios by round. Processor time is that of the process, which other programs disturb less."""


def measured(part: str, contestant: str, rounds: int) -> dict[str, str]:
    """What a process of its own finds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "findings.json"
        case = Path(__file__).with_name("unfreezing_case.py")
        run = subprocess.run(
            [sys.executable, str(case), part, contestant, str(rounds), str(path)],
            capture_output=True, text=True, timeout=1200, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if path.exists():
            return dict(json.loads(path.read_text()))
        last = (run.stderr.strip().splitlines() or [""])[-1]
        return {f"{part}: failed": f"exit status {run.returncode}, {last[:140]}".replace("|", "/")}


def rows_of(parts: list[str], rounds: int) -> list[dict[str, str]]:
    """Run all parts of all contestants, one after the other."""
    found: dict[str, dict[str, str]] = {}
    with Progress() as progress:
        task = progress.add_task("", total=len(parts) * len(CONTESTANTS))
        for part in parts:
            for contestant in CONTESTANTS:
                progress.update(task, description=f"{part}, {contestant}")
                start = perf_counter()
                for label, text in measured(part, contestant, rounds).items():
                    found.setdefault(label, {})[contestant] = text
                progress.console.print(f"{part}, {contestant}: {perf_counter() - start:.0f} s")
                progress.advance(task)
    return [
        {"measured": label, **{name: texts.get(name, "") for name in CONTESTANTS}}
        for label, texts in found.items()
    ]


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(arguments.only, arguments.rounds)
    if set(arguments.only) == set(PARTS):
        publish("unfreezing", TITLE, rows, NOTES)
        return
    for row in rows:
        print(row["measured"], *(f"  {name}: {row[name]}" for name in CONTESTANTS), sep="\n")


if __name__ == "__main__":
    main()
