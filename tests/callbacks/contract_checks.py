"""What the contract asks, as functions over any callback, and callbacks that break it."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from contract_modules import ModuleCase
from contract_table import loss_and_logits
from torch import nn

from firstlight.callbacks import ProbeMonitor


def fit(case: ModuleCase, root: Path, callbacks: list[Any], epochs: int = 2, **kwargs: Any) -> Any:
    """Train a module of the table; same seed, same data, every time."""
    seed_all(7)
    module = case.build()
    settings = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "default_root_dir": root,
        "accumulate_grad_batches": case.accumulate,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": callbacks,
    }
    trainer = case.trainer(**{**settings, **kwargs})
    model = torch.compile(module, backend="eager") if case.compiled else module
    trainer.fit(model, case.loader(shuffle=True), case.loader())
    return trainer, module


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global state is what must not move
    torch.manual_seed(seed)


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything a callback could have moved."""
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": {n: p.grad for n, p in module.named_parameters() if p.grad is not None},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "hooks": {name: len(m._forward_hooks) for name, m in module.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


class Watch(L.Callback):
    """Snapshots at moments of a run, so that what is moved and moved back in time is seen too."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(snapshot(pl_module))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(snapshot(pl_module))


def check_unchanged(case: ModuleCase, root: Path, make: Any) -> None:
    """Training with the callback is bitwise the training without it, at every update."""
    runs = []
    for name, callbacks in {"without": [], "with": [make()]}.items():
        watch = Watch()
        kind = L.Callback if case.trainer is L.Trainer else None
        extra = [watch] if kind is not None else [_other_package(watch)]
        _, module = fit(case, root / name, [*callbacks, *extra])
        runs.append((watch.seen, snapshot(module)))
    (without, end), (with_it, end_with) = runs
    assert len(without) == len(with_it)
    for a, b in zip([*without, end], [*with_it, end_with], strict=True):
        for part in a:
            if part != "hooks":
                assert _equal(a[part], b[part]), f"{part} moved"
    assert end["hooks"] == end_with["hooks"], "hooks were left on the module"


def _other_package(watch: Watch) -> Any:
    import pytorch_lightning

    class Other(pytorch_lightning.Callback):
        on_before_optimizer_step = watch.on_before_optimizer_step
        on_validation_start = watch.on_validation_start

    return Other()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Stopped(Exception):
    """A run ended by `StopsAt`."""


class StopsAt(L.Callback):
    """Ends a run at a step, after the checkpoint of the update before."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Stopped


class DrawsARandomNumber(L.Callback):
    """Broken: moves the random state."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(1)


class LeavesBatchNormInEval(L.Callback):
    """Broken: measures in eval mode and does not go back."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.net[1].eval()


class ForgetsItsHooks(L.Callback):
    """Broken: leaves a hook behind."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.net.register_forward_hook(lambda *_: None)


class UpdatesFromALocalGradient(L.Callback):
    """Broken under DDP: each rank moves its own way, as after a thaw that DDP does not know of."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        with torch.no_grad():
            pl_module.net[-1].bias += 0.1 * (1 + trainer.global_rank)


class BrokenMonitor(ProbeMonitor):
    """Measures, and then does what a monitor must not."""

    def __init__(self) -> None:
        super().__init__(loss_and_logits, every_n_train_steps=2, probe_size=8)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        super().on_train_batch_start(trainer, pl_module, *rest)
        self.spoil(pl_module)

    def spoil(self, pl_module: Any) -> None: ...


class DrawsInAMeasurement(BrokenMonitor):
    """Broken: draws from NumPy's global generator."""

    def spoil(self, pl_module: Any) -> None:
        np.random.rand()  # noqa: NPY002  # what must be seen


class LeavesWarmStatistics(BrokenMonitor):
    """Broken: BatchNorm keeps the probe's statistics."""

    def spoil(self, pl_module: Any) -> None:
        pl_module.net[1].running_mean += 1e-3


class AddsToAGradient(BrokenMonitor):
    """Broken: the next update is of the probe's gradient too."""

    def spoil(self, pl_module: Any) -> None:
        pl_module.net[0].bias.register_hook(lambda gradient: gradient + 1e-3)
