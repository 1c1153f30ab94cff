"""Fine-tuning with gradual unfreezing and with the paper's controls, by the configs that ship.

    python benchmarks/finetune_cifar10.py --images DIR --weights FILE [ARM ...]

Every arm is ``firstlight fit`` with ``experiment/finetune_cifar10_cpu`` and one more config, in a
process of its own with one thread, some minutes each. An arm whose run is finished under --runs is
read and not run again. DIR holds train/<class>/*.jpg and test/<class>/*.jpg of CIFAR-10, FILE
timm's weights of tf_efficientnet_lite0. One seed: how much it says, the table cannot tell.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from rich.progress import track
from side_by_side import publish

from firstlight.runfolder import RunFolder

BASE = ["--config", "firstlight:experiment/finetune_cifar10_cpu"]
ARMS = {
    "auto": "callbacks/gradual_unfreezing",
    "plain": "",
    "tenth": "lr_scheduler/tenth",
    "warmup": "lr_scheduler/warmup",
    "random_interval": "callbacks/gradual_unfreezing_random_interval",
    "bottom_up": "callbacks/gradual_unfreezing_bottom_up",
    "random_order": "callbacks/gradual_unfreezing_random_order",
}


def finished(folder: Path) -> RunFolder | None:
    """The run folder of an arm that came to its end."""
    runs = [RunFolder.open(found.parent) for found in folder.rglob("run.json")]
    return next((run for run in runs if run.run["status"] == "finished"), None)


def run_of(arm: str, options: argparse.Namespace) -> RunFolder:
    """Train an arm, unless it is there."""
    folder = options.runs / f"arm_{arm}"
    if (found := finished(folder)) is not None:
        return found
    more = ["--config", f"firstlight:{ARMS[arm]}"] if ARMS[arm] else []
    subprocess.run(
        [Path(sys.executable).with_name("firstlight"), "fit", *BASE, *more,
         "--data.root", options.images, "--model.checkpoint_path", options.weights,
         "--trainer.default_root_dir", folder],
        check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = finished(folder)
    assert found is not None
    return found


def row_of(arm: str, run: RunFolder) -> dict[str, str]:
    """One line of the table."""
    classes = run.read("per_class").to_pylist()
    accuracy = [one["correct"] / one["n"] for one in classes]
    thaws = [one["step"] for one in run.read("events").to_pylist() if one["kind"] == "thaw"]
    return {
        "arm": ARMS[arm] or "everything trains from the start",
        "first and last thaw, step": f"{thaws[0]}, {thaws[-1]}" if thaws else "",
        "steps": str(classes[0]["step"]),
        "images": str(sum(one["n"] for one in classes)),
        "mean accuracy, %": f"{100 * sum(accuracy) / len(accuracy):.1f}",
        "worst class, %": f"{100 * min(accuracy):.1f}",
    }


def main() -> None:
    """Run the arms and publish the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--images", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--runs", type=Path, default=Path("build/finetune_cifar10"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row_of(arm, run_of(arm, options)) for arm in track(options.arms, "arms")]
    publish(
        "finetune_cifar10",
        "EfficientNet-Lite0 from ImageNet on CIFAR-10 at 64 px: unfreezing and controls, one seed",
        rows,
        "On validation images cut from the training set, after the last step. So few steps say "
        "nothing of a long run.",
    )


if __name__ == "__main__":
    main()
