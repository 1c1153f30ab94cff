"""The table of the contract's modules: every kind of LightningModule a callback must work in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from firstlight.lightning_modules import ImageClassifier

CLASSES, EXAMPLES, BATCH = 3, 37, 8  # 37 divides neither by the batch nor by two ranks


class Images(Dataset):
    """Separable noise images; `key` makes items mappings."""

    classes = ("ant", "bee", "cat")

    def __init__(self, key: str | None = None, regression: bool = False) -> None:
        generator = torch.Generator().manual_seed(11)
        self.targets = [0] * 20 + [1] * 11 + [2] * 6
        self.images = torch.randn(EXAMPLES, 3, 4, 4, generator=generator)
        self.images[:, 0] += torch.tensor(self.targets)[:, None, None]
        self.key, self.regression = key, regression

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> Any:
        target = float(self.targets[index]) if self.regression else self.targets[index]
        if self.key:
            return {self.key: self.images[index], "labels": target}
        return self.images[index], target


class Tokens(Images):
    """Token ids under unusual keys."""

    def __getitem__(self, index: int) -> Any:
        ids = (self.images[index].flatten()[:6].abs() * 5).long().clamp(max=19)
        return {"tokens": ids + 3 * self.targets[index], "polarity": self.targets[index]}


def network() -> nn.Sequential:
    """Dropout draws random numbers, BatchNorm keeps statistics: both show what a callback moves."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


def optimizer_of(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)


class TupleBatch(L.LightningModule):
    """(x, y), the network called as a child."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def logits(self, batch: Any) -> torch.Tensor:
        return self.net(batch[0])

    def targets(self, batch: Any) -> torch.Tensor:
        return batch[1]

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.logits(batch), self.targets(batch))

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", F.cross_entropy(self.logits(batch), self.targets(batch)))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return optimizer_of(self)


class DictBatch(TupleBatch):
    """A mapping; the network called through self.forward."""

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch["pixel_values"])

    def targets(self, batch: Any) -> torch.Tensor:
        return batch["labels"]


class ObjectOutput(TupleBatch):
    """forward returns an object with logits, as Hugging Face models do."""

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.net(x), hidden=x)

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch[0]).logits


class TupleOutput(TupleBatch):
    """forward returns (logits, features)."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x), x

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch[0])[0]


class TwoChildren(TupleBatch):
    """A backbone and a head, called one after the other; the backbone's output is no logits."""

    def __init__(self) -> None:
        super().__init__()
        body = network()
        self.net = nn.ModuleDict({"backbone": body[:-1], "head": body[-1]})

    def forward(self, x: torch.Tensor) -> Any:
        return self.net["head"](self.net["backbone"](x))

    def logits(self, batch: Any) -> torch.Tensor:
        return self.net["head"](self.net["backbone"](batch[0]))


class Functional(TupleBatch):
    """Calls no module: the logits can only be had by a second forward."""

    def logits(self, batch: Any) -> torch.Tensor:
        return self.net.forward(batch[0])


class Manual(TupleBatch):
    """Two optimisers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        loss = super().training_step(batch, index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return optimizer_of(self.net[0]), optimizer_of(self.net[-1])


class Text(TupleBatch):
    """A text classifier; the adapter method says what its batches hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.EmbeddingBag(30, 8), nn.Dropout(0.2), nn.Linear(8, CLASSES))

    def adapter(self, batch: Any) -> Any:
        return batch["tokens"], batch["polarity"], self

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch["tokens"])

    def targets(self, batch: Any) -> torch.Tensor:
        return batch["polarity"]


class Regression(TupleBatch):
    """No classifier: to be refused."""

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch[0])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.mse_loss(self.logits(batch)[:, 0], batch[1].float())

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.training_step(batch, index))


class OtherPackage(pytorch_lightning.LightningModule):
    """From `pytorch_lightning`, whose classes are not those of `lightning.pytorch`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    logits, targets, forward = TupleBatch.logits, TupleBatch.targets, TupleBatch.forward
    training_step, validation_step = TupleBatch.training_step, TupleBatch.validation_step
    test_step, configure_optimizers = TupleBatch.test_step, TupleBatch.configure_optimizers


class StepsOnly(L.LightningModule):
    """No ``forward``: its steps call the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    logits, targets = TupleBatch.logits, TupleBatch.targets
    training_step, validation_step = TupleBatch.training_step, TupleBatch.validation_step
    test_step, configure_optimizers = TupleBatch.test_step, TupleBatch.configure_optimizers


class Ours(ImageClassifier):
    """firstlight's own module."""

    def __init__(self) -> None:
        super().__init__("resnet20_cifar", num_classes=CLASSES, drop_rate=0.2)

    def logits(self, batch: Any) -> torch.Tensor:
        return self(batch[0])

    def targets(self, batch: Any) -> torch.Tensor:
        return batch[1]


@dataclass(frozen=True)
class ModuleCase:
    """A module, its data, and the trainer that runs it."""

    build: Callable[[], Any]
    data: Callable[[], Dataset] = Images
    trainer: Callable[..., Any] = L.Trainer
    compiled: bool = False
    accumulate: int = 1
    blocks: int = 1  # below the head

    def loader(self, shuffle: bool = False) -> DataLoader:
        return DataLoader(self.data(), BATCH, shuffle=shuffle)


MODULES: Mapping[str, ModuleCase] = {
    "tuple batch": ModuleCase(TupleBatch),
    "no forward, accumulated": ModuleCase(StepsOnly, accumulate=2),
    "dict batch": ModuleCase(DictBatch, lambda: Images("pixel_values")),
    "object output": ModuleCase(ObjectOutput),
    "tuple output": ModuleCase(TupleOutput),
    "two children": ModuleCase(TwoChildren),
    "functional": ModuleCase(Functional),
    "manual optimisation": ModuleCase(Manual),
    "compiled": ModuleCase(TupleBatch, compiled=True),
    "text": ModuleCase(Text, Tokens),
    "ImageClassifier": ModuleCase(Ours, blocks=4),
    "pytorch_lightning": ModuleCase(OtherPackage, trainer=pytorch_lightning.Trainer),
}

REFUSED = ModuleCase(Regression, lambda: Images(regression=True))
