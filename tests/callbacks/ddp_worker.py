"""Runs on two gloo processes, by torch.distributed.run: every callback in several modules.

Each rank writes what it saw to ``<folder>/rank<r>.pt``; test_ddp.py reads and judges.
"""

import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch

sys.path.insert(0, str(Path(__file__).parent))
import contract_checks as checks
from contract_modules import MODULES, Images
from contract_table import CALLBACKS, loss_and_logits
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from firstlight.callbacks import LastLayerRetraining, ProbeMonitor, WeightNoise, extraction
from firstlight.callbacks.retraining import DEFAULT_RULES
from firstlight.functional import row_store

MODULES_RUN = (
    "tuple batch",
    "no forward, accumulated",
    "dict batch",
    "manual optimisation",
    "text",
    "pytorch_lightning",
)
DDP = {"strategy": "ddp", "devices": 2}


def numbers(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def trained(case, root, callbacks, **kwargs):
    trainer, module = checks.fit(case, root, callbacks, **DDP, **kwargs)
    return {"weights": module.state_dict(), "metrics": numbers(trainer)}


def probed(case, root, build, **arguments):
    """Train, measuring to the end; and measure the last weights anew, by this process alone.

    Without a validation, whose forward would give all ranks the first one's BatchNorm statistics.
    """
    monitor = build(every_n_train_steps=[[0, 2], [5, 1]], **arguments)
    seen = trained(case, root, [monitor], limit_val_batches=0)
    module, again, probe = case.build(), build(**arguments), monitor.probe_set
    module.load_state_dict(seen["weights"])
    found = again.scalars(again.measured(module, probe.inputs, probe.targets))
    # As metrics are kept: in single precision.
    alone = {key: float(torch.tensor(value)) for key, value in found.items()}
    return seen | {"alone": alone, "probe": probe.inputs}


def split_between_ranks():
    """A probe that a DistributedSampler splits."""
    return DataLoader(Images(), 8, sampler=DistributedSampler(Images(), shuffle=False))


def fails_on_the_second_rank(model, inputs, targets):
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("the second rank stumbled")
    return {"n": 1}


class Refused(L.Callback):
    """Runs a monitor's start and first measurement by itself, and keeps what it says."""

    def __init__(self, monitor, probe) -> None:
        self.monitor, self.probe, self.message = monitor, probe, ""

    def on_train_start(self, trainer, pl_module):
        self.monitor.setup(trainer, pl_module, "fit")
        self.monitor.probe = self.probe and self.probe()
        try:
            self.monitor.on_train_start(trainer, pl_module)
            self.monitor.on_train_batch_start(trainer, pl_module)
        except Exception as error:
            self.message = str(error)


def refusal(case, root, measure, probe):
    """With what a monitor ends a fit, on this rank; here the fit itself goes on."""
    refused = Refused(ProbeMonitor(measure, probe_size=20, probe_batch_size=4), probe)
    checks.fit(case, root, [refused], epochs=1, **DDP)
    return refused.message


def validated(case, root, callback, loader, **kwargs):
    checks.seed_all(7)
    trainer = case.trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback],
        default_root_dir=root, **kwargs,
    )  # fmt: skip
    trainer.validate(case.build(), loader, verbose=False)
    return numbers(trainer)


RULES = (*DEFAULT_RULES, "balanced_midpoint")
RETRAININGS = {
    # Split by a sampler that repeats; dealt out by the callback; and in a file on each rank.
    "val": (0.25, {"data": "val"}),
    "train": (0.25, {"data": "train"}),
    "in a file": (0.0, {"data": "val", "ridge": "loo"}),
}


LOUD = {"sigma": 0.5, "mode": "all", "seed": 3}
NOISES = {
    "shared": {**LOUD, "batch_norm_examples": 16},
    "independent": {**LOUD, "independent_ranks": True},
    "returned": {**LOUD, "returns": "perturbed"},
}


class Noise(L.Callback):
    """What lies on the head's weights in the first step, on this rank."""

    clean = noise = None

    def on_train_batch_start(self, trainer, pl_module, *_):
        if self.clean is None:
            self.clean = pl_module.net[-1].weight.detach().clone()

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if self.noise is None:
            self.noise = pl_module.net[-1].weight.detach() - self.clean


def noisy(case, root, callback):
    watch = Noise()
    return trained(case, root, [watch, callback]) | {"noise": watch.noise}


class Hidden(Dataset):
    """Keeps its targets to itself."""

    def __len__(self):
        return len(Images())

    def __getitem__(self, index):
        return Images()[index]


def left_as_it_was(case, root):
    """With what a fit ends whose data turn out to hold no example of a class, on this rank."""
    extraction.FEW = 0

    held = Subset(Hidden(), [i for i in range(37) if Images().targets[i] != 2])

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Images(), 8)

        def holdout_dataloader(self):
            return DataLoader(held, 8)

    checks.seed_all(7)
    module = case.build()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=root, logger=False, **DDP,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[LastLayerRetraining()],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=Data())
    said = [str(one.message) for one in caught if "head stays" in str(one.message)]
    return {"weights": module.state_dict(), "said": said}


def own_share(case, rank):
    """A loader that Lightning leaves alone, with 30 examples on rank 0 and 7 on rank 1."""
    data = case.data()
    shares = [range(30), range(30, len(data))]
    return DataLoader(Subset(data, list(shares[rank])), 8)


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    seen = {}
    for name, callback in CALLBACKS.items():
        for module in MODULES_RUN:
            case, root = MODULES[module], folder / f"{name}-{module}"
            if callback.kind == "probe":
                seen[name, module, "fit"] = probed(case, root, callback.build)
                continue
            seen[name, module, "fit"] = trained(case, root, [callback.build()])
            if callback.kind == "trainer":
                continue
            seen[name, module, "validate"] = validated(
                case, root / "validate", callback.build(), case.loader(), **DDP
            )
        if callback.kind != "evaluator":
            continue
        case = MODULES["tuple batch"]
        seen[name, "uneven"] = validated(
            case, folder / f"{name}-uneven", callback.build(), own_share(case, rank),
            use_distributed_sampler=False, **DDP,
        )  # fmt: skip
    case = MODULES["tuple batch"]
    seen["fewer examples than ranks"] = probed(
        case, folder / "few", CALLBACKS["ProbeMonitor"].build, probe_size=1
    )
    for label, measure, probe in (
        ("failing rank", fails_on_the_second_rank, None),
        ("split probe", loss_and_logits, split_between_ranks),
    ):
        seen[label] = refusal(case, folder / label, measure, probe)
    for label, (share, options) in RETRAININGS.items():
        row_store.SHARE = share
        callback = LastLayerRetraining(rules=RULES, **options)
        seen["retrained", label] = trained(case, folder / f"retrained-{label}", [callback])
        found = callback.result
        seen["retrained", label] |= {
            "heads": {rule: head.weight for rule, head in found.heads.heads.items()},
            "ridges": {rule: head.ridge for rule, head in found.heads.heads.items()},
            "fitted": found.fitted,
            "scores": {
                rule: [s.macro, s.brier, s.ece_scaled, s.temperature]
                for rule, s in found.scores.items()
            },
        }  # fmt: skip
    for label, options in NOISES.items():
        seen["noise", label] = noisy(case, folder / f"noise-{label}", WeightNoise(**options))
    seen["missing class"] = left_as_it_was(case, folder / "missing")
    broken = checks.UpdatesFromALocalGradient()
    seen["broken"] = trained(MODULES["tuple batch"], folder / "broken", [broken])
    torch.save(seen, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
