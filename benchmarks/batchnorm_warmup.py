"""BatchNorm's running statistics draw a curve of their own: the Fisher trace of CIFAR-10's start.

    python benchmarks/batchnorm_warmup.py DIR

Trains a ResNet-20 on CIFAR-10 (DIR/train/<class>/*, DIR/test/<class>/*) from scratch for 300 steps
of batch 128, twice: with a learning rate of 0, where nothing is learned and nothing should move,
and with 0.1. Two monitors watch each run on the same 256 training images: one measures with the
running statistics as they stand, one with statistics taken from the probe set.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from matplotlib.figure import Figure
from side_by_side import RESULTS, publish

from firstlight.callbacks import FisherTraceMonitor
from firstlight.datamodules import CIFAR10DataModule
from firstlight.figures.palette import BLUE, ORANGE, open_frame, save
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

STEPS, RATES = 300, (0.0, 0.1)
SCHEDULE = ((0, 3), (30, 10), (100, 25))
KINDS = {"running": ("as they stand", ORANGE, "s"), "warm": ("warmed on the probe set", BLUE, "o")}


def run(root: str, rate: float, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Train once; the two curves."""
    seed_everything(0, verbose=False)
    monitors = [
        FisherTraceMonitor(
            name=f"fisher_{kind}", batch_norm=kind, every_n_train_steps=SCHEDULE,
            run_dir=str(folder),
        )
        for kind in KINDS
    ]  # fmt: skip
    model = ImageClassifier(
        "resnet20_cifar",
        num_classes=10,
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": rate, "momentum": 0.9}},
        seed=0,
    )
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[*monitors, RichProgressBar()],
    )  # fmt: skip
    trainer.fit(model, datamodule=CIFAR10DataModule(root=root, batch_size=128, seed=0))
    curves = {}
    opened = monitors[0].records.folder
    assert opened is not None
    for kind in KINDS:
        rows = [r for r in RunFolder.open(opened.path).read(f"fisher_{kind}").to_pylist()
                if not r["block"]]  # fmt: skip
        curves[kind] = {key: np.array([r[key] for r in rows]) for key in ("step", "value", "se")}
    return curves


def draw(runs: dict[float, dict[str, dict[str, np.ndarray]]]) -> Path:
    """One panel a learning rate."""
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    for axes, (rate, curves) in zip(figure.subplots(2, 1, sharex=True), runs.items(), strict=True):
        for kind, curve in curves.items():
            label, colour, marker = KINDS[kind]
            step, value, band = curve["step"], curve["value"], 2 * curve["se"]
            axes.plot(step, value, color=colour, marker=marker, markersize=4, label=label)
            axes.fill_between(step, value - band, value + band, color=colour, alpha=0.25, lw=0)
        axes.set_xscale("symlog", linthresh=3, linscale=0.4)
        axes.set_xticks([0, 3, 10, 30, 100, 300], ["0", "3", "10", "30", "100", "300"])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.set_ylabel("Fisher trace (nats² / weight²)")
        learned = "" if rate else ": nothing is learned"
        axes.set_title(f"learning rate {rate:g}{learned}", loc="left", fontsize=11)
        axes.legend(title="BatchNorm statistics", frameon=False)
        open_frame(axes)
    axes.set_xlabel("step (optimiser updates); bands: ± 2 standard errors, 256 examples")
    still = runs[0.0]["running"]["value"]
    figure.suptitle(
        f"BatchNorm's warm-up alone moves the Fisher trace {moved(still):.0f}-fold,\n"
        "with nothing learned; with warmed statistics it stands still",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    return save(figure, RESULTS / "batchnorm_warmup.png")


def moved(values: np.ndarray) -> float:
    """Largest over smallest."""
    return float(values.max() / values.min())


def main() -> None:
    """Run, draw, publish."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {rate: run(sys.argv[1], rate, Path(folder, f"{rate:g}")) for rate in RATES}
    print(draw(runs))
    rows = [
        {
            "learning rate": f"{rate:g}",
            "BatchNorm statistics": KINDS[kind][0],
            "step 0": f"{curve['value'][0]:.4g}",
            "largest": f"{curve['value'].max():.4g}, step {curve['step'][curve['value'].argmax()]}",
            f"step {STEPS}": f"{curve['value'][-1]:.4g} ± {curve['se'][-1]:.2g}",
            "largest / smallest": f"{moved(curve['value']):.4g}",
        }
        for rate, curves in runs.items()
        for kind, curve in curves.items()
    ]
    publish(
        "batchnorm_warmup",
        "Fisher trace of a ResNet-20's first 300 steps on CIFAR-10, from scratch",
        rows,
        "![curves](batchnorm_warmup.png)",
    )


if __name__ == "__main__":
    main()
