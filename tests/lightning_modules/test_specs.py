import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from firstlight.lightning_modules.specs import from_spec, plain, to_spec


class Keeps(nn.Module):
    def __init__(self, inner: nn.Module, weight: Tensor | None = None, gamma: float = 2.0) -> None:
        super().__init__()
        self.inner, self.gamma = inner, gamma
        self.register_buffer("weight", weight)


class Alters(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = 2 * gamma


class Hides(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self._gamma = gamma


def rebuilt(value, expected=nn.Module):
    spec = to_spec(value, "loss", expected)
    assert spec == plain(spec, "spec")  # plain values only
    return from_spec(spec, what="loss", expected=expected)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(torch.tensor([1 / 3, 0.1]), reduction="sum", ignore_index=1),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
        nn.MultiMarginLoss(p=2, margin=0.5),
    ],
)
def test_torchs_losses_are_rebuilt_with_every_setting(loss):
    other = rebuilt(loss)
    assert type(other) is type(loss)
    settings = {k: v for k, v in vars(loss).items() if not k.startswith("_")}
    assert settings == {k: v for k, v in vars(other).items() if not k.startswith("_")}
    for name, buffer in loss.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name))


def test_nested_modules_and_tensors_are_rebuilt():
    other = rebuilt(Keeps(nn.CrossEntropyLoss(label_smoothing=0.2), torch.tensor([1, 2]), 3.0))
    assert other.inner.label_smoothing == 0.2 and other.gamma == 3.0
    assert other.weight.dtype == torch.int64 and other.weight.tolist() == [1, 2]


def test_factories_become_public_class_paths():
    given = functools.partial(torch.optim.SGD, lr=np.float32(0.5), momentum=0.9)
    assert to_spec(given, "optimizer", Optimizer) == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.5, "momentum": 0.9},
    }
    assert to_spec(torch.optim.Adam, "optimizer", Optimizer)["class_path"] == "torch.optim.Adam"
    bare = {"class_path": "AdamW", "init_args": {"betas": (0.9, 0.99)}}
    assert to_spec(bare, "optimizer", Optimizer) == {
        "class_path": "torch.optim.AdamW",
        "init_args": {"betas": [0.9, 0.99]},
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda groups: torch.optim.SGD(groups), "lambda.*cannot be rebuilt.*class_path"),
        (functools.partial(torch.optim.SGD, [torch.zeros(1)]), "arguments by keyword"),
        (functools.partial(torch.optim.SGD, lr=object()), r"optimizer.lr: <object"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(value, message):
    with pytest.raises(TypeError, match=message):
        to_spec(value, "optimizer", Optimizer)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Hides(3.0), "Hides does not keep its argument 'gamma'"),
        (Alters(3.0), "Alters rebuilt from its attributes differs .* in 'gamma'"),
        (nn.Sequential(nn.ReLU()), r"Sequential takes \*args"),
        (nn.CrossEntropyLoss(torch.ones(2, dtype=torch.float64)), "loss.weight"),
    ],
)
def test_losses_that_would_come_back_different_are_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        to_spec(loss, "loss", nn.Module)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class_path": "os.system", "init_args": {"command": "true"}}, "os.system is not a class"),
        ({"class_path": "torch.nn.Linear"}, "not a class of Optimizer"),
        ({"class_path": "torch.optim.Sdg"}, "there is no torch.optim.Sdg"),
        ({"class_path": "no_such_package.X"}, "cannot import no_such_package"),
        ({"class_path": "torch.optim.SGD", "init_args": {"lrr": 1}}, "'lrr'; near names: lr"),
        ({"class": "torch.optim.SGD"}, "expected the keys class_path and init_args"),
    ],
)
def test_specs_that_lead_elsewhere_are_refused_and_never_called(spec, message):
    with pytest.raises(ValueError, match=message):
        to_spec(spec, "optimizer", Optimizer)
    if "class_path" in spec:
        with pytest.raises(ValueError, match=message):
            from_spec(spec, [], what="optimizer", expected=Optimizer)


def test_plain_values():
    given = {"a": (1, Path("x")), "b": np.int64(3), "c": torch.tensor([True])}
    assert plain(given, "value") == {"a": [1, "x"], "b": 3, "c": [True]}
    with pytest.raises(TypeError, match=r"value.act: <class .*GELU.*pass numbers, text"):
        plain({"act": nn.GELU}, "value")
