"""CIFAR-10-LT, factor 100: what becomes of the classes under ways to serve the rare ones.

    python benchmarks/cifar10_lt_methods.py --images DIR [--epochs 12] [--seeds 0 1 2]

For each seed (of the subset, the split and the training) one ResNet-32 is trained by
``firstlight fit`` with ``experiment/cifar10_lt_cpu``, some twenty minutes on one core, and every
method starts from its last weights; a run that is finished under --runs is not repeated. DIR holds
train/<class>/*.jpg and test/<class>/*.jpg, or torchvision's archive. Nothing is selected on the
test set: last epoch, published or default settings, tau and temperatures from the hold-out.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from last_layer_scale import features_of
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from side_by_side import RESULTS, machine
from torch import Tensor

from firstlight.datamodules import CIFAR10DataModule
from firstlight.figures.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    open_frame,
    save,
)
from firstlight.functional import (
    NearestClassMean,
    RetrainedHead,
    best_tau,
    class_balanced_retraining,
    deep_feature_reweighting,
    effective_prior,
    fit_temperature,
    label_over_smoothing,
    learnable_weight_scaling,
    long_tailed_indices,
    prior_offset,
    retrain_last_layer,
    score_classifier,
    tau_normalise,
)
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder, fingerprint
from firstlight.seed_table import Result, Row, show_seed_table, write_seed_table

CONFIG = "firstlight:experiment/cifar10_lt_cpu"
RULES = [
    "unweighted", "inverse_frequency", "square_root", "logit_adjustment", "vector_scaling",
    "equal_error", "balanced_midpoint", "worst_class_midpoint",
]  # fmt: skip
MANY = 100
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Examples:
    """Features (N, d) and targets (N,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Trained:
    """One trained network: its head, and the features of three sets."""

    head: RetrainedHead
    train: Examples
    holdout: Examples
    test: Examples
    full_counts: Tensor
    provenance: dict[str, object]

    @property
    def counts(self) -> Tensor:
        """Examples of each class trained on."""
        return torch.bincount(self.train.y).double()


def arguments_of(seed: int, options: argparse.Namespace) -> list[str]:
    """What a seed's run is told beside the config."""
    return [
        f"--data.root={options.images}", f"--data.imbalance_seed={seed}", "--data.val=0",
        "--data.holdout=0.1", f"--seed_everything={seed}", f"--trainer.max_epochs={options.epochs}",
        f"--model.lr_scheduler.init_args.total={options.epochs}", "--model.channels_last=true",
        "--trainer.num_sanity_val_steps=0",
    ]  # fmt: skip


def run_of(seed: int, options: argparse.Namespace) -> RunFolder:
    """Train a seed's network, unless it is there."""
    folder = options.runs / f"seed_{seed}"

    def finished() -> RunFolder | None:
        runs = [RunFolder.open(found.parent) for found in folder.rglob("run.json")]
        return next((run for run in runs if run.run["status"] == "finished"), None)

    if (found := finished()) is None:
        subprocess.run(
            [Path(sys.executable).with_name("firstlight"), "fit", "--config", CONFIG,
             *arguments_of(seed, options), f"--trainer.default_root_dir={folder}"],
            check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        found = finished()
    assert found is not None
    return found


def trained(seed: int, options: argparse.Namespace) -> Trained:
    """Put the three sets through a seed's last weights, once."""
    run = run_of(seed, options)
    (checkpoint,) = run.path.parent.rglob("last.ckpt")
    module = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    data = CIFAR10DataModule(
        str(options.images), imbalance_factor=100, imbalance_seed=seed, val=0, holdout=0.1,
        seed=seed, eval_batch_size=250,
    )  # fmt: skip
    data.setup("fit")
    sets = {
        "train": data.plain_train_dataloader(),
        "holdout": data.holdout_dataloader(),
        "test": data.test_dataloader(),
    }
    found = {
        name: Examples(*features_of(module, track(loader, f"seed {seed}, {name}", transient=True)))
        for name, loader in sets.items()
    }
    linear = module.model.get_classifier()
    full = torch.tensor(data.full_class_counts)
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    head = RetrainedHead(weight, bias, "trained", "logistic", torch.ones(10).double(), 0.0)
    every = np.repeat(range(10), 5000)
    kept = long_tailed_indices(every.tolist(), 100, "exp", seed, [str(k) for k in range(10)])
    provenance = {
        "config": CONFIG,
        "options": " ".join(arguments_of(seed, options)[1:]),
        "commit": run.run["commit"],
        "recipe": str(run.run["recipe_hash"])[:12],
        "construction": fingerprint(kept.tolist())[:12],
        "backbone": "resnet32_cifar",
        "epochs": options.epochs,
    }
    return Trained(head, found["train"], found["holdout"], found["test"], full, provenance)


def methods(one: Trained) -> dict[str, tuple[Classifier, bool]]:
    """Classifiers by name, and whether their scores are log-posteriors."""
    head, train, held = one.head, one.train, one.holdout
    logits = head.logits(train.x).double()
    shifted = {
        "post-hoc logit adjustment": one.counts,
        "prior correction (training data)": effective_prior(logits),
        "prior correction (hold-out)": effective_prior(head.logits(held.x).double()),
    }
    found: dict[str, RetrainedHead] = {"cross-entropy, as trained": head}
    for name, prior in shifted.items():
        found[name] = head.shifted(prior_offset(prior), name)
    found["tau-normalised"] = tau_normalise(head, best_tau(head, held.x, held.y))
    found["cRT"] = class_balanced_retraining(train.x, train.y, 10)
    found["LWS"] = learnable_weight_scaling(head, train.x, train.y)
    found["label over-smoothing"] = label_over_smoothing(head, train.x, train.y)
    found["DFR (hold-out)"] = deep_feature_reweighting(held.x, held.y, 10)
    for where, data in (("hold-out", held), ("training data", train)):
        heads, undefined = retrain_last_layer(data.x, data.y, RULES, num_classes=10)
        found |= {f"retrained: {rule} ({where})": fitted for rule, fitted in heads.items()}
        for rule, why in undefined.items():
            print(f"{rule} ({where}) is {why}")
    means = NearestClassMean.fit(train.x, train.y, 10)
    classifiers = {name: (one.logits, one.loss != "squared") for name, one in found.items()}
    return classifiers | {"nearest class mean": (means.logits, False)}


def result_of(name: str, seed: int, one: Trained, classify: Classifier, posterior: bool) -> Result:
    """Score one method on the test set."""
    logits, targets = classify(one.test.x), one.test.y
    scores = score_classifier([(logits, targets)], 10, probabilities=posterior)
    held = torch.bincount(one.holdout.y).double()
    weights = (1 / held)[one.holdout.y]
    cooled = float("nan")
    if posterior:
        # The test set has all classes equally often: so has the hold-out under these weights.
        heat = fit_temperature(classify(one.holdout.x), one.holdout.y, weights)
        cooled = score_classifier([(logits / heat, targets)], 10).ece
    many = one.full_counts > MANY
    measured = {
        "mean": scores.macro,
        "worst class": scores.worst,
        "many": float(scores.accuracy[many].mean()),
        "medium": float(scores.accuracy[~many].mean()),
        "training prior": scores.under(one.counts),
        "ECE": scores.ece,
        "ECE, cooled": cooled,
        "Brier": scores.brier,
    }
    return Result(name, "CIFAR-10-LT 100", seed, measured, "test", "last", one.provenance)


def kind_of(method: str) -> tuple[str, str, str]:
    """Label, colour and marker of a method."""
    if "as trained" in method:
        return "as trained", BLACK, "*"
    if method.startswith(("retrained", "DFR")):
        if "hold-out" in method:
            return "retrained on the hold-out", ORANGE, "^"
        return "retrained on training data", GREEN, "o"
    if "correction" in method or "post-hoc" in method:
        return "prior taken out, no fit", BLUE, "s"
    return "two-stage baselines", VERMILION, "D"


def draw(rows: list[Row]) -> Path:
    """Mean over classes against accuracy under the training prior."""
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes, drawn = figure.subplots(), set()
    shown = [row for row in rows if "vector_scaling" not in row.method]
    for row in shown:
        label, colour, marker = kind_of(row.method)
        x, y = (100 * row.mean[name] for name in ("training prior", "mean"))
        spread = {"xerr": 100 * row.sd["training prior"], "yerr": 100 * row.sd["mean"]}
        axes.errorbar(
            x, y, **spread, color=colour, marker=marker, markersize=7, lw=0.8,
            label=None if label in drawn else label,
        )  # fmt: skip
        drawn.add(label)
    axes.set_xlabel("accuracy if classes came as often as in training (%)")
    axes.set_ylabel("mean accuracy over classes (%)")
    left_out = next(row for row in rows if row not in shown)
    axes.text(
        0.02, 0.02, f"not drawn: vector_scaling, mean {100 * left_out.mean['mean']:.0f} %",
        color=GREY, transform=axes.transAxes, fontsize=8,
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left")
    open_frame(axes)
    first, best = shown[0], max(shown, key=lambda row: row.mean["mean"])
    gained, paid = (100 * (best.mean[k] - first.mean[k]) for k in ("mean", "training prior"))
    figure.suptitle(
        f"A new last layer gains up to {gained:.0f} points of mean accuracy over classes\n"
        f"and pays {-paid:.0f} where classes come as in training (seeds: {len(first.seeds)}; bars: "
        "standard deviation)",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    return save(figure, RESULTS / "cifar10_lt_methods.png")


def main() -> None:
    """Train, fit, score, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("build/cifar10_lt_methods"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="no finite temperature")
    results, spent = [], []
    for seed in options.seeds:
        one = trained(seed, options)
        start = time.process_time()
        found = methods(one)
        spent.append(time.process_time() - start)
        results += [result_of(name, seed, one, *how) for name, how in found.items()]
    title = f"CIFAR-10-LT, factor 100, ResNet-32 after {options.epochs} epochs: the last layer anew"
    notes = (
        "Many: the eight classes of more than 100 images, medium: the two of 83 and 50; there is "
        "no class below 20. Training prior: accuracy if classes came as often as in training. ECE: "
        "15 bins, on the balanced test set; cooled: after a temperature fitted to the hold-out, "
        "its classes weighted alike. Squared-loss heads and class means have no probabilities. "
        f"All {len(found)} methods of a seed took {max(spent):.0f} s of one core at most, beside "
        f"training and features. {machine()}."
    )
    rows = write_seed_table(
        RESULTS / "cifar10_lt_methods.md", results, title, notes,
        against="cross-entropy, as trained", gain="mean",
    )  # fmt: skip
    print(draw(rows))
    Console(width=200).print(show_seed_table(rows, title, gain="mean")[0])


if __name__ == "__main__":
    main()
