"""What the training loss did to the logits, as far as a module tells."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from firstlight.functional import ClassCountLoss
from firstlight.functional.loaders import offered

NAMES = ("loss", "criterion", "loss_fn", "loss_function")


class TrainingLoss(NamedTuple):
    """What prior correction has to know of a loss.

    Attributes:
        offsets: what it added to the logits, (K,); None for nothing.
        class_weights: (K,), of examples in the loss, or None.
        note: where that was read, a sentence.
    """

    offsets: Tensor | None
    class_weights: Tensor | None
    note: str


def as_sampled(loss: TrainingLoss, datamodule: object) -> TrainingLoss:
    """Weigh examples as often as training drew them, where the DataModule says how often.

    Args:
        loss: what is known of it.
        datamodule: firstlight's offer ``sampling_weights`` (K,), or None for every example once.
    """
    drawn = offered(datamodule, "sampling_weights")
    if drawn is None:
        return loss
    shares = torch.tensor(drawn, dtype=torch.float64)
    weights = shares if loss.class_weights is None else loss.class_weights.to(shares) * shares
    note = f"{loss.note} Examples weigh as often as {type(datamodule).__name__} drew them."
    return TrainingLoss(loss.offsets, weights, note)


def read_loss(pl_module: Any, who: str) -> TrainingLoss:
    """Read offsets and weights from the module's loss.

    Raises:
        ValueError: for a loss after which no correction is established.
    """
    found = ((name, getattr(pl_module, name, None)) for name in NAMES)
    loss = next(((name, one) for name, one in found if isinstance(one, nn.Module)), None)
    if loss is None:
        return TrainingLoss(
            None, None,
            "the module keeps no loss as an attribute: taken for plain cross-entropy. Pass "
            "offsets= what training added to the logits, if it did.",
        )  # fmt: skip
    name, one = loss
    kind = type(one).__name__
    if isinstance(one, ClassCountLoss):
        terms = one.prepared
        if terms.scale is not None or terms.margin is not None:
            raise ValueError(
                f"{who}: training by {kind} scales logits or has margins, after which the test "
                "rule is the raw logits and no correction of the prior is established. Pass "
                "offsets= (zeros: raw logits are taken for log-posteriors) to do it all the same"
            )
        said = [
            word
            for word, value in (("offsets", terms.offset), ("class weights", terms.weight))
            if value is not None
        ]
        return TrainingLoss(
            terms.offset, terms.weight, f"{' and '.join(said) or 'no offsets'} of {name}, {kind}."
        )
    if isinstance(one, nn.CrossEntropyLoss):
        return TrainingLoss(None, one.weight, f"trained by {kind}, without offsets.")
    return TrainingLoss(
        None, None,
        f"{name}, {kind}, is not known: taken for plain cross-entropy. Pass offsets= what it adds "
        "to the logits, if it does.",
    )  # fmt: skip
