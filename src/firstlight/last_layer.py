"""``firstlight retrain-last-layer`` and ``correct-prior``: another last layer for a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from firstlight.callbacks.extraction import Features, extract
from firstlight.callbacks.kept_prior import diagnosis
from firstlight.callbacks.labelled_sets import LabelledSet, Source, find_set, training_counts
from firstlight.callbacks.linear_head import Head, check_head
from firstlight.callbacks.retrained_checkpoint import (
    CHECKPOINT_KEY,
    describe_head,
    retrained_path,
    rewrite_checkpoint,
)
from firstlight.callbacks.retraining import (
    BEFORE,
    CHUNK,
    DEFAULT_RULES,
    USUAL_RIDGE,
    Ridge,
    check_ridge_choice,
    check_rules,
    fit_and_compare,
)
from firstlight.callbacks.retraining_report import show_comparison
from firstlight.callbacks.training_loss import TrainingLoss, as_sampled, read_loss
from firstlight.checkpoints import CheckpointError, Weights
from firstlight.functional import (
    ClassifierScores,
    EffectivePrior,
    RetrainedHead,
    prior_offset,
    score_classifier,
)
from firstlight.functional.loaders import named_sets
from firstlight.measure import device_of
from firstlight.rebuild import OfflineRun, Restored, check_classes, restore_data, restore_module
from firstlight.terminal import console

PRIOR_KEY = "prior_correction"


@dataclass(frozen=True)
class _Opened:
    """A checkpoint whose last layer is at hand.

    Attributes:
        restored: module and contents.
        head: its last layer.
        fit_to: the data to fit to.
        fitted: features of them.
        evaluated: of validation data, or the same where there are none.
        where: what ``evaluated`` is, in words.
        run: stands for a trainer.
    """

    restored: Restored
    head: Head
    fit_to: LabelledSet
    fitted: Features
    evaluated: Features
    where: str
    run: OfflineRun

    def old(self) -> dict[str, Tensor]:
        """Weight and bias of the layer as it is."""
        layer = self.head.layer(self.restored.module)
        return {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}


def retrain_last_layer(
    checkpoint: str | Path,
    *,
    rule: str = "logit_adjustment",
    rules: Sequence[str] = DEFAULT_RULES,
    on: Source = "holdout",
    ridge: Ridge = USUAL_RIDGE,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_args: Mapping[str, Any] | None = None,
    weights: Weights = "auto",
    device: str = "auto",
    output: str | Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Fit a checkpoint's last layer anew by several rules, compare them, write that of one.

    Args:
        checkpoint: of any LightningModule.
        rule: which head is written, a name of `firstlight.functional.RULES`.
        rules: those that are compared.
        on: what to fit to, ``holdout``, ``val`` or ``train``.
        ridge: see `firstlight.callbacks.LastLayerRetraining`.
        model: import path of the LightningModule; None for firstlight's own.
        model_args: constructor arguments that the checkpoint does not hold.
        data: a DataModule, or a loader or data set to fit to; default: what the run was trained
            on. See `firstlight.rebuild.restore_data`.
        data_args: arguments for ``data``.
        weights: ``raw``, ``ema``, or the average where there is one (``auto``).
        device: ``cpu``, ``cuda``..., or ``auto``: a GPU if there is one.
        output: the file to write; default: ``<checkpoint>-retrained.ckpt`` beside it.
        trust: types that the checkpoint may hold; see `firstlight.checkpoints.read_checkpoint`.

    Returns:
        The file: the checkpoint with the new head, the old one kept in it.

    Raises:
        FileNotFoundError: where there is no checkpoint.
        FileExistsError: where the output exists.
        CheckpointError: where module or data cannot be rebuilt.
        ValueError: on bad arguments, a head that is not linear, data that do not serve, or a rule
            that is undefined for them.
    """
    names, path = check_rules(rule, rules), Path(checkpoint)
    check_ridge_choice(ridge)
    target = _target(retrained_path(path), output)
    who = "firstlight retrain-last-layer"
    restored = restore_module(
        path, model=model, model_args=model_args, weights=weights, trust=trust
    )
    opened = _opened(restored, path, data, data_args, on, device, who)
    found = fit_and_compare(
        restored.module, opened.head, opened.fitted, opened.evaluated, names, ridge
    )
    for note in found.notes:
        _say(note)
    _show(opened, found.scores, found.heads.undefined, BEFORE, rule, f"{found.fitted:,} examples")
    if rule in found.heads.undefined:
        raise ValueError(f"nothing is written, since {rule} is {found.heads.undefined[rule]}")
    new = found.heads.heads[rule]
    told = describe_head(opened.head, new, opened.old(), on, str(path))
    rewrite_checkpoint(target, dict(restored.content), opened.head, new, told)
    return _said(target, CHECKPOINT_KEY)


def correct_prior(
    checkpoint: str | Path,
    *,
    tau: float = 1.0,
    target_prior: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    on: Source = "holdout",
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_args: Mapping[str, Any] | None = None,
    weights: Weights = "auto",
    device: str = "auto",
    output: str | Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Take the prior that a classifier learned out of its last layer's bias (Prior2Posterior).

    The bias becomes ``b + o - tau log p + log u``, see `firstlight.functional.prior_offset`.

    Args:
        checkpoint: of any LightningModule whose logits one linear layer puts out.
        tau: 0 leaves the prior in.
        target_prior: u, (K,); default uniform.
        offsets: o, (K,), what training added to the logits, where the loss does not tell.
        on: what p is estimated on, ``holdout``, ``val`` or ``train``.
        model: see `retrain_last_layer`, as for all that follow.
        model_args: likewise.
        data: likewise.
        data_args: likewise.
        weights: likewise.
        device: likewise.
        output: default: ``<checkpoint>-prior-corrected.ckpt`` beside it.
        trust: likewise.

    Returns:
        The file: the checkpoint with the new bias, the old one and the prior kept in it.

    Raises:
        FileNotFoundError, FileExistsError, CheckpointError: as `retrain_last_layer`.
        ValueError: likewise; and for losses after which no correction is established.
    """
    path = Path(checkpoint)
    target = _target(path.with_name(f"{path.stem}-prior-corrected.ckpt"), output)
    who = "firstlight correct-prior"
    restored = restore_module(
        path, model=model, model_args=model_args, weights=weights, trust=trust
    )
    if PRIOR_KEY in restored.content:
        raise CheckpointError(f"{path} is corrected already: give the one that it was made from")
    opened = _opened(restored, path, data, data_args, on, device, who)
    loss = read_loss(restored.module, who) if offsets is None else None
    if loss is None:
        loss = TrainingLoss(torch.tensor(offsets).double(), None, "offsets are the argument's.")
    loss = as_sampled(loss, opened.run.datamodule)
    _say(loss.note)
    old, prior = opened.old(), _effective_prior(opened, loss)
    shift = prior_offset(
        prior,
        offsets=loss.offsets,
        tau=tau,
        target_prior=None if target_prior is None else torch.tensor(target_prior).double(),
    )
    ones = torch.ones(opened.head.num_classes, dtype=torch.float64)
    weight, bias = old["weight"].double().cpu(), old["bias"].double().cpu() + shift
    new = RetrainedHead(weight, bias, PRIOR_KEY, "none", ones, 0.0)
    scores = {
        "as trained": _scores(opened, old["weight"], old["bias"]),
        "prior corrected": _scores(opened, new.weight, new.bias),
    }
    counts = training_counts(opened.run, opened.head.num_classes)
    _say(f"The effective prior {diagnosis(prior, counts)}.")
    _show(opened, scores, {}, "as trained", "prior corrected", opened.fit_to.name)
    told = describe_head(opened.head, new, old, on, str(path))
    told |= {"effective_prior": prior, "shift": shift, "tau": tau}
    rewrite_checkpoint(target, dict(restored.content), opened.head, new, told, PRIOR_KEY)
    return _said(target, PRIOR_KEY)


def _target(default: Path, output: str | Path | None) -> Path:
    target = default if output is None else Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists: give another --output, or remove it")
    return target


def _opened(
    restored: Restored, path: Path, data: Any, data_args: Any, on: Source, device: str, who: str
) -> _Opened:
    """Rebuild the data, find the head, put the data through the module once."""
    source, origin = restore_data(data, data_args, path, restored.content)
    check_classes(restored.module, source)
    module = restored.module.to(device_of(device))
    trainer = OfflineRun(module, source)
    loader = DataLoader(source, batch_size=128) if isinstance(source, Dataset) else source
    fit_to = LabelledSet("train", loader, "the data given")
    if trainer.datamodule is not None:
        fit_to = find_set(trainer, on, who, option="--on")
    move = trainer.strategy.batch_to_device
    head = check_head(module, fit_to.loader, move, who, None)
    lines = [
        f"The last layer is {head.name!r}, {head.width} features to {head.num_classes} classes; "
        f"{restored.weights} weights; examples are {fit_to.name}, by {origin}.",
        *fit_to.notes,
    ]
    for line in lines:
        _say(line)

    def features(source: LabelledSet) -> Features:
        found = extract(module, head, source.loader, move, who, None, path.parent)
        if found.note:
            _say(f"Features of {source.name}, {found.note}.")
        return found

    fitted = features(fit_to)
    val = named_sets("val", trainer.val_dataloaders)
    evaluated, where = fitted, "the data fitted to, which flatters what is fitted"
    if val and on != "val":
        where = "validation data"
        evaluated = features(LabelledSet("val", val[0][1], where))
    return _Opened(restored, head, fit_to, fitted, evaluated, where, trainer)


def _effective_prior(opened: _Opened, loss: TrainingLoss) -> Tensor:
    device, old = opened.fitted.features.device, opened.old()
    estimate = EffectivePrior(opened.head.num_classes, loss.offsets, device)
    rows = max(64, CHUNK // opened.head.num_classes)
    for logits, y, _ in opened.fitted.logits(old["weight"], old["bias"], rows):
        weights = None if loss.class_weights is None else loss.class_weights.to(y.device)[y]
        estimate.update(logits, weights)
    return estimate.compute()


def _scores(opened: _Opened, weight: Tensor, bias: Tensor) -> ClassifierScores:
    rows = max(64, CHUNK // opened.head.num_classes)
    return score_classifier(opened.evaluated.logits(weight, bias, rows), opened.head.num_classes)


def _show(
    opened: _Opened,
    scores: Mapping[str, ClassifierScores],
    undefined: Mapping[str, str],
    before: str,
    chosen: str,
    fitted: str,
) -> None:
    fell = show_comparison(
        opened.run, f"Last layer, from {fitted}; on {opened.where}", scores, before,
        None if chosen in undefined else chosen, by_class=f"{chosen}, by class",
        undefined=undefined,
    )  # fmt: skip
    _say(fell)


def _say(line: str) -> None:
    if line:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _said(target: Path, key: str) -> Path:
    _say(
        f"Written, with the old layer under {key!r}: {target}\nTo test it: firstlight test "
        f"--config CONFIG --ckpt_path {target}\nor trainer.test(model, data, "
        f"ckpt_path={str(target)!r})"
    )
    return target
