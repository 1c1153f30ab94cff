"""What WeightNoise costs of a training step: against the same step without it, in turn.

    python benchmarks/weight_noise.py [--device cuda] [--cycles 1] [NAME ...]

Whole steps through Lightning's Trainer (forward, backward, SGD with momentum) on a batch of noise
images at 224 px. Each side trains in a thread of its own, which waits for its turn before each
batch: in every round each side makes one step, the first of them another one each time. A cycle is
as many rounds as there are matrices, so that each has its turn; ratios are over whole cycles.
On a CPU one thread's processor time. The plain step is there twice: how far its ratio to itself is
from 1 says how far to trust the others on a machine that is not quiet.
"""

import argparse
import tempfile
import threading
import time
import warnings
from statistics import mean
from typing import Any

import lightning.pytorch as L
import timm
import torch
from rich.progress import track
from side_by_side import publish, ratio
from torch.nn import functional as F
from torch.utils.data import DataLoader

from firstlight.callbacks import WeightNoise
from firstlight.functional import NoiseRule, noise_groups, perturb_weights

BATCHES = {"resnet18": 4, "vit_tiny_patch16_224": 4}
SIDES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "none: the plain step again": None,
    "a matrix in turn": {"mode": "round_robin"},
    "all matrices": {"mode": "all"},
}


class Trained(L.LightningModule):
    """A timm network and nothing else."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Side(L.Callback):
    """Trains in a thread, a step whenever it is its turn, and keeps the seconds of each."""

    def __init__(self, name: str, options: dict[str, Any] | None, device: str, steps: int) -> None:
        self.device, self.steps, self.seconds = device, steps, []
        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)
        noise = [] if options is None else [WeightNoise(**{"noise_free": 0, **options})]
        self.callbacks, self.name, self.error = [self, *noise], name, None
        self.thread = threading.Thread(target=self.train, daemon=True)
        self.thread.start()

    def train(self) -> None:
        """The thread."""
        count = BATCHES.get(self.name, 4)
        batch = torch.randn(count, 3, 224, 224), torch.randint(10, (count,))
        loader = DataLoader([batch] * self.steps, batch_size=None)
        try:
            with tempfile.TemporaryDirectory() as folder:
                L.Trainer(
                    max_steps=self.steps, accelerator=self.device, devices=1, logger=False,
                    enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False, default_root_dir=folder, callbacks=self.callbacks,
                ).fit(Trained(self.name), loader)  # fmt: skip
        except BaseException as error:
            self.error = error
            self.done.release()

    def step(self) -> None:
        """Let the thread make one step."""
        self.turn.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error

    def now(self) -> float:
        """Processor time, or on a GPU the time once it has done its work."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        """Wait; WeightNoise comes after."""
        self.turn.acquire()
        self.start = self.now()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop, the weights being restored."""
        self.seconds.append(self.now() - self.start)
        self.done.release()


def noise_alone(name: str, device: str, rule: NoiseRule, repeat: int = 3) -> float:
    """Milliseconds of perturbing and restoring, by themselves, mean over the groups."""
    groups = noise_groups(Trained(name).to(device), rule.group_by)
    steps = repeat * (1 if rule.mode == "all" else len(groups))
    clock = time.process_time if device == "cpu" else time.perf_counter
    for timed in (False, True):
        start = clock()
        for step in range(steps if timed else len(groups)):
            perturb_weights(groups, 0.1, step, rule).restore()
        if device != "cpu":
            torch.cuda.synchronize()
    return 1e3 * (clock() - start) / steps


def compare(name: str, device: str, cycles: int) -> list[dict[str, str]]:
    """One row for each way of noise."""
    matrices = len(noise_groups(Trained(name)))
    rounds = cycles * matrices + 1
    sides = [Side(name, options, device, rounds) for options in SIDES.values()]
    for number in track(range(rounds), description=name):
        place = number % len(sides)
        for side in sides[place:] + sides[:place]:
            side.step()
    for side in sides:
        side.thread.join()
    steps = {label: side.seconds[1:] for label, side in zip(SIDES, sides, strict=True)}
    rows = []
    for label, options in SIDES.items():
        if label == "plain":
            continue
        alone = 0.0
        if options is not None:
            alone = noise_alone(name, device, WeightNoise(**options).rule)
        plain = mean(steps["plain"])
        rows.append(
            {
                "network": f"{name}, batch {BATCHES.get(name, 4)}",
                "noise": label,
                "plain step, ms": f"{1e3 * plain:.0f}",
                "with noise / plain": f"{mean(steps[label]) / plain:.3f}",
                "by round": ratio(steps[label], steps["plain"]),
                "noise alone, ms": f"{alone:.1f}",
                "of a plain step": f"{alone / (1e3 * plain):.2%}",
            }
        )
    return rows


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(BATCHES))
    parser.add_argument("--cycles", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    rows = [
        row for name in arguments.names for row in compare(name, arguments.device, arguments.cycles)
    ]
    publish(
        "weight_noise",
        "A training step with WeightNoise against a plain one, 224 px",
        rows,
        f"Ratios over {arguments.cycles} cycles of rounds, in each of which every matrix has its "
        "turn; by round: median, lowest and highest. The noise alone: perturbing and restoring "
        "without a step between, mean over the groups. It does not depend on the batch: larger "
        "batches cost less in proportion.",
    )


if __name__ == "__main__":
    main()
