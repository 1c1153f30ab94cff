"""``firstlight demo``: a real run on real images, about a minute, nothing downloaded."""

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from firstlight.callbacks import (
    FisherTraceMonitor,
    PerClassMonitor,
    PriorCorrection,
    SharpnessMonitor,
)
from firstlight.datamodules import DigitsDataModule
from firstlight.figures import per_class_figure
from firstlight.lightning_modules import ImageClassifier

SCHEDULE = [[0, 5], [20, 10]]
"""Steps at which the demo measures: more densely where more happens."""


def demo(
    output: Path = Path("runs/demo"),
    epochs: int = 20,
    imbalance_factor: float = 20.0,
    seed: int = 0,
) -> None:
    """Train a small network on long-tailed digits: its first steps, and what became of each class.

    Then the prior that it learned is taken out of its logits: each class before and after.

    Args:
        output: where the run goes.
        epochs: passes over the training images.
        imbalance_factor: how many times more zeros than nines there are to learn from.
        seed: of the split, the order, the augmentations and the weights.
    """
    console = Console()
    console.print(
        "[bold]firstlight demo[/]: scikit-learn's 1,797 handwritten digits, of which the network "
        f"sees {imbalance_factor:g} times more zeros than nines. What will it do to the nines?\n"
    )
    seed_everything(seed, verbose=False)
    _quieten_hints()
    data = DigitsDataModule(
        imbalance_factor=imbalance_factor, img_size=16, batch_size=64, seed=seed, holdout=0.0
    )
    model = ImageClassifier(
        "resnet20_cifar",
        optimizer={
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        },
        lr_scheduler={
            "class_path": "firstlight.lightning_modules.WarmupCosineLR",
            "init_args": {"warmup": 2, "total": epochs},
        },
        seed=seed,
    )
    monitor = PerClassMonitor(stages=("test",))
    # Warm: the network starts from scratch, where BatchNorm's statistics move by themselves.
    early: dict[str, Any] = {
        "every_n_train_steps": SCHEDULE,
        "probe_size": 128,
        "batch_norm": "warm",
    }
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(output, name=None),
        callbacks=[
            monitor,
            FisherTraceMonitor(**early),
            SharpnessMonitor(**early),
            RichProgressBar(),
        ],
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert monitor.records.folder is not None
    run = monitor.records.folder.path
    figure = per_class_figure(run)
    console.print(
        "\nThe network has learned that nines are rare. [bold]PriorCorrection[/] takes that out of "
        "its logits, without training anything:\n"
    )
    after = Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[PriorCorrection(data="train", run_dir=str(output / "prior_correction"))],
    )
    after.test(model, datamodule=data, verbose=False)
    console.print(
        f"\nEvery class:    {figure}\n"
        f"Early training: {run / 'figures' / 'early_training.png'}\n"
        f"The run folder: {run}\n\n[bold]Next[/]\n"
        "  your own trainer    Trainer(callbacks=\\[PerClassMonitor(), FisherTraceMonitor()])\n"
        "  the rare classes    LastLayerRetraining(), PriorCorrection(): docs/long_tail.md\n"
        "  from a YAML file    firstlight fit --config firstlight:experiment/digits_lt\n"
        "  all configs         firstlight --help\n"
    )


def _quieten_hints() -> None:
    """Leave out Lightning's hints on hardware and add-ons, which are for other runs than this."""
    hints = ("💡", "GPU available", "TPU available", "`Trainer.fit` stopped")
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: not record.getMessage().startswith(hints))
    warnings.filterwarnings("ignore", module="lightning.pytorch")
