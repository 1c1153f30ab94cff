"""Train any timm classifier under Lightning."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight.functional.loaders import offered
from firstlight.functional.mixing import cutmix, mixup
from firstlight.functional.seeding import keyed_generator, keyed_randomness, resolve_seed
from firstlight.lightning_modules.backbone import check_model_name, create_backbone
from firstlight.lightning_modules.batches import check_logits, images_of
from firstlight.lightning_modules.checkpoints import (
    check_fits,
    check_reduction,
    check_values,
    provenance,
    warn_of_other_images,
)
from firstlight.lightning_modules.datamodule_facts import BuildModel, preprocessing_of
from firstlight.lightning_modules.loss_counts import give_counts, tell_progress
from firstlight.lightning_modules.loss_watch import LossWatch
from firstlight.lightning_modules.measured_module import MeasuredModule
from firstlight.lightning_modules.optimization import (
    make_optimizer,
    make_scheduler,
    scheduler_spec,
)
from firstlight.lightning_modules.specs import Spec, from_spec, plain, to_spec

DEFAULT_LOSS: Spec = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {}}
DEFAULT_OPTIMIZER: Spec = {
    "class_path": "torch.optim.AdamW",
    "init_args": {"lr": 1e-3, "weight_decay": 0.05},
}
OBJECTS = ["loss", "optimizer", "lr_scheduler"]  # arguments that are objects, kept as specs
CHECKPOINT_KEY = "image_classifier"
STEP_STREAM, MIXING_STREAM = 1, 2  # first keys of a training step's random numbers


class ImageClassifier(MeasuredModule):
    """A timm classifier with its loss, optimiser, schedule and metrics.

    **Batches** are ``(images, labels, ...)`` or a dict with the usual keys.

    **Metrics**, of ``train``, ``val`` and ``test``: ``<stage>/loss``, ``top1``, ``top5`` and
    ``macro_accuracy``, computed at the end of an epoch from sums over its examples on all ranks;
    examples that a ``DistributedSampler`` repeats do not count, nor do absent classes in the macro
    accuracy. Of several data sets the first has the plain keys, the others
    ``<stage>/<name>/<metric>``. The loss is the mean of the given loss over examples; one that
    normalises within a batch (class weights) depends on the batch size. Training metrics are those
    of the training forward passes; under MixUp and CutMix the heavier of the two labels counts as
    the true one. ``train/loss_step`` is the loss of single steps.

    **Randomness** of a training step (dropout, stochastic depth, mixing) is keyed by (seed, epoch,
    batch, rank), so that a resumed run continues as one never stopped.

    **Hyper-parameters** are plain values that rebuild the same objects; a checkpoint loads with
    ``weights_only=True`` and never reads pretrained weights again.

    **Optimiser groups** are static, hold every parameter (frozen ones too) and are named
    ``<block>/decay`` and ``<block>/no_decay``; biases, norms and what the model lists do not decay.

    Args:
        model_name: a timm name, with or without a tag.
        num_classes: outputs of the head; None takes the DataModule's when a run begins.
        pretrained: start from timm's published weights.
        checkpoint_path: start from a local weight file instead; a head of another size is new.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth; None leaves the model's default.
        model_kwargs: further arguments of ``timm.create_model``, plain values.
        loss: a module called with (logits, labels), labels as probabilities (N, C) where images
            are mixed, that returns the batch's mean; or ``{"class_path", "init_args"}``. Default:
            cross-entropy. One with ``set_class_counts`` is given the DataModule's
            ``class_counts``; one with ``set_progress`` hears at each epoch's start how far
            training is.
        optimizer: a callable that takes parameter groups (a class, a ``functools.partial``), or
            ``{"class_path", "init_args"}``. Default: AdamW, rate 1e-3, decay 0.05.
        lr_scheduler: the same, taking the optimiser. Default: a constant rate.
        lr_scheduler_interval: what the scheduler counts, ``epoch`` or ``step``.
        layer_decay: learning rates fall by this factor per block from the head to the stem (timm's
            fine blocks); 1 turns it off.
        mixup_alpha: ratios are Beta(alpha, alpha), one per example; 0 turns MixUp off.
        cutmix_alpha: the same for CutMix; with both, each batch takes one of them at random.
        channels_last: keep weights and images in that memory format.
        compile: compile the network in place; names of weights stay the same.
        seed: of the random numbers of training steps; None: that of ``seed_everything``, or 0.

    Attributes:
        model: the timm model (from the beginning of a run where ``num_classes`` is None).
        class_names: the DataModule's, or those kept in the checkpoint; None when unknown.
        weights_from: provenance of the initial weights, kept in the checkpoint.

    Raises:
        ValueError: for bad values, unknown names (near ones are listed), weights that do not fit.
        TypeError: for objects that cannot be rebuilt from a checkpoint, such as lambdas.
        FileNotFoundError: when ``checkpoint_path`` does not exist.
    """

    model: nn.Module

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        model_kwargs: dict[str, Any] | None = None,
        loss: nn.Module | dict[str, Any] | None = None,
        optimizer: OptimizerCallable | dict[str, Any] | None = None,
        lr_scheduler: LRSchedulerCallable | dict[str, Any] | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        layer_decay: float = 1.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_model_name(model_name)
        check_values(num_classes, layer_decay, mixup_alpha, cutmix_alpha, lr_scheduler_interval)
        self.save_hyperparameters(ignore=OBJECTS)
        given: Mapping[str, Any] = {n: v for n, v in locals().items() if n in OBJECTS}
        if "_instantiator" in self.hparams:  # made by LightningCLI, which knows the plain values
            self.save_hyperparameters()
            given = self.hparams
        defaults = {"loss": DEFAULT_LOSS, "optimizer": DEFAULT_OPTIMIZER}
        given = {n: defaults.get(n) if given[n] is None else given[n] for n in OBJECTS}
        specs = {
            "loss": to_spec(given["loss"], "loss", nn.Module),
            "optimizer": to_spec(given["optimizer"], "optimizer", Optimizer),
            "lr_scheduler": given["lr_scheduler"] and scheduler_spec(given["lr_scheduler"]),
            "model_kwargs": plain(model_kwargs, "model_kwargs"),
            "checkpoint_path": plain(checkpoint_path, "checkpoint_path"),
            "seed": resolve_seed(seed),
        }
        self.save_hyperparameters(specs)
        build_loss = functools.partial(from_spec, specs["loss"], what="loss", expected=nn.Module)
        self.loss: nn.Module = loss if isinstance(loss, nn.Module) else build_loss()
        check_reduction(self.loss)
        self.class_names: list[str] | None = None
        self.weights_from: dict[str, Any] = {}
        self._seed_is_given = seed is not None
        self._preprocessing: dict[str, Any] = {}
        self._watch = LossWatch()
        if num_classes is not None:
            self.build(num_classes)

    # ------------------------------------------------------------------ model

    @property
    def is_built(self) -> bool:
        """Whether the number of classes, and with it the model, is known."""
        return "model" in self._modules

    def build(self, num_classes: int) -> None:
        """Create the model and what depends on the number of classes; done once."""
        hparams = self.hparams
        optional = {
            "drop_rate": hparams["drop_rate"] or None,  # some models do not take it
            "drop_path_rate": hparams["drop_path_rate"],
        }
        self.model, self.weights_from = create_backbone(
            hparams["model_name"],
            num_classes,
            hparams["pretrained"],
            hparams["checkpoint_path"],
            in_chans=hparams["in_chans"],
            **{name: value for name, value in optional.items() if value is not None},
            **(hparams["model_kwargs"] or {}),
        )
        hparams["num_classes"] = num_classes
        if hparams["channels_last"]:
            self.model.to(memory_format=torch.channels_last)
        if hparams["compile"]:
            self.model.compile()
        self.measure(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        if not self.is_built:
            raise RuntimeError("num_classes is not known yet: pass it, or fit with a DataModule")
        if self.hparams["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(x)
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        hparams = self.hparams
        return check_logits(
            self(images), len(images), hparams["num_classes"], hparams["model_name"]
        )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Have the model built before any callback's ``setup`` looks at it."""
        if not self.is_built:
            self.trainer.callbacks.insert(0, BuildModel())  # type: ignore[attr-defined]
        return []

    def setup(self, stage: str) -> None:
        """Take names and counts from the DataModule and compare its number of classes.

        Raises:
            ValueError: when the DataModule has another number of classes, or the loss needs class
                counts and there are none.
        """
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        classes, ours = offered(datamodule, "num_classes"), self.hparams["num_classes"]
        if classes not in (None, ours):
            raise ValueError(
                f"num_classes={ours}, but {type(datamodule).__name__} has {classes} classes: leave "
                "num_classes out to follow the data, or give the data it was meant for"
            )
        names = offered(datamodule, "class_names")
        if names is not None and len(names) == ours:
            self.class_names = [str(name) for name in names]
        self._preprocessing = preprocessing_of(datamodule)
        if stage != "predict":
            self.hparams["loss"] = give_counts(self.loss, self.hparams["loss"], datamodule, ours)
        if stage == "fit":
            self._watch.reset()
            rank_zero_info(f"{self.hparams['model_name']}: {provenance(self.weights_from)}")

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            FloatingPointError: when the loss is not finite (checked at each step on the CPU, at
                logging steps, epoch ends and checkpoints elsewhere).
        """
        images, targets = self.unpack("train", 0, batch)
        place = (self.current_epoch, batch_idx, self.global_rank)
        images, wanted = self._mix(images, targets, place)
        with keyed_randomness(self.hparams["seed"], STEP_STREAM, *place, device=self.device):
            logits = self._logits(images)
            loss: Tensor = self.loss(logits, wanted)
        if self._watch.see(loss, self.global_step) or self._at_logging_step(batch_idx):
            self._check_loss()
        heavier = wanted.argmax(1) if wanted.ndim == 2 else targets
        self.record("train", 0, logits.detach(), heavier, wanted, loss.detach())
        self.log("train/loss_step", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def _mix(
        self, images: Tensor, targets: Tensor, place: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        alphas = {mixup: self.hparams["mixup_alpha"], cutmix: self.hparams["cutmix_alpha"]}
        methods = [(mix, alpha) for mix, alpha in alphas.items() if alpha > 0]
        if not methods:
            return images, targets
        generator = keyed_generator(self.hparams["seed"], MIXING_STREAM, *place)
        chosen = int(torch.randint(len(methods), (), generator=generator))
        mix, alpha = methods[chosen]
        return mix(images, targets, self.hparams["num_classes"], alpha, generator)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of its data set."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of its data set."""
        self._evaluate("test", batch, dataloader_idx)

    def _evaluate(self, stage: str, batch: Any, index: int) -> None:
        images, targets = self.unpack(stage, index, batch)
        self.record(stage, index, self._logits(images), targets)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return class probabilities (N, num_classes)."""
        return self._logits(images_of(batch)).softmax(1)

    def _at_logging_step(self, batch_idx: int) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (batch_idx + 1) % every == 0

    def on_train_start(self) -> None:
        """Begin or continue the metrics; the epoch of a resumed run has no start of its own."""
        super().on_train_start()
        tell_progress(self.loss, self.trainer)

    def on_train_epoch_start(self) -> None:
        """Begin the metrics; tell the loss how far training is."""
        super().on_train_epoch_start()
        tell_progress(self.loss, self.trainer)

    def on_train_epoch_end(self) -> None:
        """Log the training metrics, unless the loss has become infinite or NaN."""
        self._check_loss()
        super().on_train_epoch_end()

    def _check_loss(self) -> None:
        optimizers = self.trainer.optimizers
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        given = [float(rate) for rate in rates if rate is not None]
        self._watch.check(self.current_epoch, max(given, default=None))

    # ----------------------------------------------- optimiser and checkpoint

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over all parameters and, where given, the schedule."""
        hparams = self.hparams
        optimizer = make_optimizer(
            hparams["optimizer"], self.model, self.loss, hparams["layer_decay"]
        )
        if hparams["lr_scheduler"] is None:
            return optimizer
        interval = hparams["lr_scheduler_interval"]
        return {
            "optimizer": optimizer,
            "lr_scheduler": make_scheduler(hparams["lr_scheduler"], optimizer, interval),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep names, provenance and the epoch's sums; initial weights are not to be read again.

        Raises:
            FloatingPointError: when the loss has become infinite or NaN: such weights are no
                checkpoint.
        """
        hyper_parameters = checkpoint["hyper_parameters"]
        hyper_parameters |= {"pretrained": False, "checkpoint_path": None}
        hyper_parameters.pop("_instantiator", None)  # the constructor takes plain values itself
        checkpoint[CHECKPOINT_KEY] = {
            "class_names": self.class_names,
            "weights_from": self.weights_from,
            "train": self.training_sums(),
            "preprocessing": self._preprocessing,
        }
        self._check_loss()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits and take over what it keeps.

        Raises:
            ValueError: when it belongs to another architecture or number of classes.
        """
        hparams = self.hparams
        check_fits(checkpoint, hparams["model_name"], hparams["num_classes"], self.state_dict())
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        names = saved.get("class_names")
        if None not in (names, self.class_names) and names != self.class_names:
            rank_zero_warn(
                f"the checkpoint's classes ({names[:3]}, ...) are not those of the data "
                f"({self.class_names[:3]}, ...): accuracies compare unlike things"  # type: ignore[index]
            )
        warn_of_other_images(saved.get("preprocessing", {}), self._preprocessing)
        self.class_names = names or self.class_names
        self.weights_from = saved.get("weights_from", self.weights_from)
        self.resume_sums(saved.get("train"))
        if not self._seed_is_given:
            hparams["seed"] = checkpoint["hyper_parameters"].get("seed", hparams["seed"])
