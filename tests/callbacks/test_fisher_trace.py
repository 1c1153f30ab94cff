"""FisherTraceMonitor beside the contract: that it hands the right things over, and its cost."""

import contract_checks as checks
import pytest
import torch
from contract_modules import MODULES, Images, TupleBatch
from contract_table import CALLBACKS
from torch import nn
from torch.func import functional_call, grad, vmap

from firstlight.callbacks import FisherTraceMonitor
from firstlight.callbacks.module_blocks import blocks_of
from firstlight.callbacks.probe_report import training_share
from firstlight.lightning_modules import ImageClassifier
from firstlight.runfolder import RunFolder

INPUTS, TARGETS = Images().images, torch.tensor(Images().targets)


def exact(module, names):
    """Oracle: sum over classes of p_c |grad log p_c|^2, by per-example autograd, in float64."""
    weights = {n: p.detach() for n, p in module.named_parameters() if n in names}
    logits = module(INPUTS.double()).detach()

    def log_p(chosen, x, c):
        return functional_call(module, chosen, (x[None],)).log_softmax(1)[0, c]

    total = 0.0
    for c in range(logits.shape[1]):
        p = logits.softmax(1)[:, c]
        gradients = vmap(grad(log_p), (None, 0, None))(weights, INPUTS.double(), c)
        total += sum((p * g.flatten(1).square().sum(1)).sum() for g in gradients.values())
    return float(total.detach()) / len(INPUTS)


def test_trace_and_blocks_of_a_foreign_module_are_exact():
    module = TupleBatch().double().eval()
    found = FisherTraceMonitor("exact", probe_batch_size=10).measured(module, INPUTS, TARGETS)
    names = [name for name, _ in module.named_parameters()]
    values = {one.block: one.value for one in found}
    assert values[""] == pytest.approx(exact(module, names), rel=1e-10)
    assert values["stem"] == pytest.approx(exact(module, [n for n in names if "5" not in n]))
    assert sum(v for block, v in values.items() if block) == pytest.approx(values[""], rel=1e-12)
    assert found[0].per_parameter == values[""] / sum(p.numel() for p in module.parameters())
    assert [one.n for one in found] == [37] * 3


def test_only_what_is_trained_counts():
    module = TupleBatch().double().eval()
    module.net[:5].requires_grad_(False)
    monitor = FisherTraceMonitor()
    found = monitor.measured(module, INPUTS, TARGETS)
    head = [name for name, p in module.named_parameters() if p.requires_grad]
    assert [one.block for one in found] == ["", "head"]
    assert found[0].value == pytest.approx(exact(module, head), rel=1e-10)
    assert "only a linear head" in monitor.notes(found)[0]


@pytest.mark.parametrize("estimator", ["importance", "label", "rademacher", "batch"])
def test_estimators_are_handed_on(estimator):
    """Close to the exact value, and each in its own way."""
    torch.manual_seed(0)
    module = TupleBatch()
    want = FisherTraceMonitor("exact").measured(module, INPUTS, TARGETS)[0].value
    (found, *_) = FisherTraceMonitor(estimator).measured(module, INPUTS, TARGETS)
    assert found.kind == estimator
    assert found.value == pytest.approx(want, rel=0.9 if estimator == "batch" else 0.2)
    assert found.value != want


def test_blocks_are_those_of_the_backbone():
    module = ImageClassifier("resnet20_cifar", num_classes=3)
    coarse, fine = (blocks_of(module, coarse=mode) for mode in (True, False))
    assert list(coarse) == ["stem", "layer1", "layer2", "layer3", "head"]
    assert "layer1.0" in fine
    for blocks in (coarse, fine):
        listed = [name for names in blocks.values() for name in names]
        assert sorted(listed) == sorted(name for name, _ in module.named_parameters())
    found = FisherTraceMonitor(blocks="fine").measured(module, INPUTS[:4], TARGETS[:4])
    assert [one.block for one in found[1:]] == list(fine)


def test_blocks_of_a_timm_model_deep_inside():
    import timm

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = nn.CrossEntropyLoss()
            self.wrapped = nn.Sequential(timm.create_model("resnet10t", num_classes=3))

    blocks = blocks_of(Foreign())
    assert list(blocks) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert blocks["head"] == ["wrapped.0.fc.weight", "wrapped.0.fc.bias"]


def test_default_share_of_training():
    """Below 3 % of 10,000 steps of 128."""
    monitor = FisherTraceMonitor()
    share = training_share(monitor.passes(1000), 256, monitor.schedule, 10_000, 128)
    by_hand = 70 * 256 * 3 / (10_000 * 128 * 3)  # 50 measurements before step 500, 20 from there
    assert share == pytest.approx(by_hand)
    assert share < 0.03


def test_the_preset_is_the_papers():
    monitor = FisherTraceMonitor(preset="2403.15210")
    assert (monitor.probe_size, monitor.probe_batch_size) == (2048, 256)
    assert monitor.schedule.pieces == ((0, 10),)
    FisherTraceMonitor(preset="2403.15210", probe_size=2048)
    with pytest.raises(ValueError, match="means every_n_train_steps=10"):
        FisherTraceMonitor(preset="2403.15210", every_n_train_steps=[[0, 10], [500, 500]])


def test_the_figure_is_drawn_once_and_its_path_printed_once(tmp_path, capsys):
    pair = [CALLBACKS[name].build() for name in ("FisherTraceMonitor", "SharpnessMonitor")]
    checks.fit(MODULES["tuple batch"], tmp_path, pair)
    assert capsys.readouterr().out.count("early_training.png") == 1
    assert len(list(tmp_path.rglob("early_training.png"))) == 1


def test_a_missing_matplotlib_is_one_clear_line(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "firstlight.figures", None)
    callback = CALLBACKS["FisherTraceMonitor"].build()
    checks.fit(MODULES["tuple batch"], tmp_path, [callback])
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "No figure" in s]
    assert "matplotlib" in line
    (description,) = tmp_path.rglob("run.json")
    assert RunFolder.open(description.parent).run["status"] == "finished"
