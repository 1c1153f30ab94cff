"""PerClassMonitor's own behaviour; what it shares with other callbacks is in test_contract.py."""

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_table import CLASSES, MODULES, Images, ModuleCase, TupleBatch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from firstlight.callbacks import PerClassMonitor
from firstlight.runfolder import RunFolder

every_module = pytest.mark.parametrize("module", MODULES)


def evaluate(case, root, monitor, loader=None, module=None, verb="validate"):
    checks.seed_all(7)
    module = module or case.build()
    trainer = case.trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[monitor],
        default_root_dir=root,
    )  # fmt: skip
    getattr(trainer, verb)(module, loader or case.loader(), verbose=False)
    return trainer, module


def run_of(root):
    (description,) = root.rglob("run.json")
    return RunFolder.open(description.parent)


@every_module
def test_counts_are_those_of_a_forward_by_hand(module, tmp_path):
    case = MODULES[module]
    _, model = evaluate(case, tmp_path, PerClassMonitor())
    model.eval()
    batches = list(case.loader())
    with torch.no_grad():
        logits = torch.cat([model.logits(batch) for batch in batches])
    targets = torch.cat([model.targets(batch) for batch in batches])
    expected = confusion_matrix(targets, logits.argmax(1), labels=range(CLASSES))
    table = run_of(tmp_path).read("per_class").to_pydict()
    assert table["n"] == expected.sum(1).tolist() == [20, 11, 6]
    assert table["pred_count"] == expected.sum(0).tolist()
    assert table["correct"] == np.diag(expected).tolist()
    losses = F.cross_entropy(logits, targets, reduction="none")
    for c in range(CLASSES):
        assert table["nll"][c] == pytest.approx(losses[targets == c].mean().item(), rel=1e-5)
    predictions = run_of(tmp_path).read("predictions").to_pydict()
    assert predictions["idx"] == list(range(37))
    assert predictions["target"] == targets.tolist()
    assert predictions["pred"] == logits.argmax(1).tolist()
    np.testing.assert_allclose(predictions["nll"], losses, rtol=1e-5)
    pairs = run_of(tmp_path).read("confusions").to_pylist()
    assert {(p["target"], p["pred"]): p["count"] for p in pairs} == {
        (t, p): n for (t, p), n in np.ndenumerate(expected) if t != p and n
    }


def test_no_second_forward(tmp_path):
    model, calls = TupleBatch(), []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    evaluate(MODULES["tuple batch"], tmp_path, PerClassMonitor(), module=model)
    assert len(calls) == 5


def test_a_second_forward_is_announced(tmp_path, capsys):
    evaluate(MODULES["functional"], tmp_path, PerClassMonitor())
    assert capsys.readouterr().out.count("a second time") == 1


def test_logits_beside_other_outputs_are_named(tmp_path, capsys):
    evaluate(MODULES["two children"], tmp_path, PerClassMonitor())
    printed = " ".join(capsys.readouterr().out.split())
    assert "logits are the output of net.head, 3 classes" in printed
    assert "net.backbone (width 64)" in printed


def test_known_class_count_settles_which_output_is_meant(tmp_path):
    class Projected(TupleBatch):
        """A projection is the last child to be called."""

        def __init__(self):
            super().__init__()
            self.projection = torch.nn.Linear(CLASSES, 5)

        def logits(self, batch):
            logits = self.net(batch[0])
            self.projection(logits)
            return logits

    evaluate(ModuleCase(Projected), tmp_path, PerClassMonitor(class_names=("ant", "bee", "cat")))
    assert run_of(tmp_path).read("per_class").num_rows == CLASSES


def test_adapter_argument_comes_first(tmp_path):
    def swapped(pl_module, batch):
        return batch[0], 2 - batch[1], pl_module

    evaluate(MODULES["tuple batch"], tmp_path, PerClassMonitor(adapter=swapped))
    assert run_of(tmp_path).read("per_class")["n"].to_pylist() == [6, 11, 20]


def test_unknown_batches_are_refused_with_their_structure(tmp_path):
    class Odd(Images):
        def __getitem__(self, index):
            return {"photo": self.images[index], "kind": self.targets[index]}

    class Module(TupleBatch):
        def logits(self, batch):
            return self(batch["photo"])

        def targets(self, batch):
            return batch["kind"]

    message = r"PerClassMonitor cannot tell inputs.*'photo': float32 \(8, 3, 4, 4\).*adapter="
    with pytest.raises(TypeError, match=message):
        evaluate(ModuleCase(Module, Odd), tmp_path, PerClassMonitor())


def test_soft_targets_count_for_the_heaviest_class(tmp_path, capsys):
    class Soft(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, 0.7 * F.one_hot(torch.tensor(target), CLASSES) + 0.1

    evaluate(ModuleCase(TupleBatch, Soft), tmp_path, PerClassMonitor())
    assert run_of(tmp_path).read("per_class")["n"].to_pylist() == [20, 11, 6]
    assert "heaviest class" in capsys.readouterr().out


def test_names_counts_and_groups_come_through_subset(tmp_path):
    data = Subset(Subset(Images(), range(36)), range(35))
    loader = DataLoader(data, 8)
    checks.seed_all(7)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[PerClassMonitor(shot_thresholds=(5, 15))],
    )  # fmt: skip
    trainer.fit(TupleBatch(), loader, loader)
    classes = run_of(tmp_path).read("classes").to_pydict()
    assert classes["name"] == ["ant", "bee", "cat"]
    assert classes["train_count"] == classes["full_count"] == [20, 11, 4]
    assert classes["shot"] == ["many", "medium", "few"]
    rates = run_of(tmp_path).read("per_class").to_pydict()
    few = trainer.callback_metrics["val/per_class/few"]
    assert few == pytest.approx(rates["correct"][2] / rates["n"][2])


def test_counts_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class_counts has 2 entries.*3 classes"):
        evaluate(MODULES["tuple batch"], tmp_path, PerClassMonitor(class_counts=(5, 5)))


def test_several_sets_have_their_names(tmp_path):
    case = MODULES["tuple batch"]

    class Several(TupleBatch):
        def test_step(self, batch, index, dataloader_idx=0):
            self.logits(batch)

    sets = {"clean": case.loader(), "odd": DataLoader(Subset(Images(), range(0, 37, 2)), 8)}
    trainer, _ = evaluate(
        ModuleCase(Several), tmp_path, PerClassMonitor(), loader=sets, verb="test"
    )
    table = run_of(tmp_path).read("per_class").to_pydict()
    assert set(table["split"]) == {"test/clean", "test/odd"}
    assert "test/odd/per_class/macro" in trainer.callback_metrics
    assert sum(table["n"]) == 37 + 19


@pytest.mark.filterwarnings("ignore:.*shuffling enabled.*")  # Lightning warns of it as well
def test_shuffled_evaluation_writes_no_predictions_and_says_so(tmp_path, capsys):
    case = MODULES["tuple batch"]
    evaluate(case, tmp_path, PerClassMonitor(), loader=case.loader(shuffle=True))
    assert run_of(tmp_path).read("predictions").num_rows == 0
    assert run_of(tmp_path).read("per_class").num_rows == CLASSES
    assert "not visited in the data set's order" in capsys.readouterr().out


def test_predictions_at_chosen_epochs(tmp_path):
    monitor = PerClassMonitor(predictions_every_n_epochs=2)
    checks.fit(MODULES["tuple batch"], tmp_path, [monitor], epochs=5)
    epochs = set(run_of(tmp_path).read("predictions")["epoch"].to_pylist())
    assert epochs == {1, 3, 4}


def test_the_sanity_check_leaves_nothing(tmp_path):
    checks.fit(MODULES["tuple batch"], tmp_path, [PerClassMonitor()], epochs=1)
    assert run_of(tmp_path).read("per_class")["step"].to_pylist() == [5, 5, 5]


def test_the_worst_classes_are_printed_and_illustrated(tmp_path, capsys):
    evaluate(MODULES["tuple batch"], tmp_path, PerClassMonitor(worst=2))
    printed = capsys.readouterr().out
    assert "the 2 worst classes" in printed
    folder = run_of(tmp_path)
    assert f"Per-class tables: {folder.path}" in " ".join(printed.split("\n"))
    wrong = folder.read("predictions").to_pylist()
    errors = {f"{row['target']}_{row['idx']}.png" for row in wrong if row["target"] != row["pred"]}
    files = list((folder.path / "examples").iterdir())
    assert files
    assert {file.name for file in files} <= errors
    for file in files:
        with Image.open(file) as image:
            assert max(image.size) <= 96


def test_a_failed_run_is_not_called_finished(tmp_path):
    class Fails(TupleBatch):
        def training_step(self, batch, index):
            raise RuntimeError("of purpose")

    with pytest.raises(RuntimeError, match=r"of purpose"):
        checks.fit(ModuleCase(Fails), tmp_path, [PerClassMonitor()])
    assert run_of(tmp_path).run["status"] == "failed"


def test_ignored_examples_are_in_no_table(tmp_path):
    class Marked(Images):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, -1 if index % 2 else target

    class Module(TupleBatch):
        def validation_step(self, batch, index):
            self.logits(batch)

    evaluate(ModuleCase(Module, Marked), tmp_path, PerClassMonitor(ignore_index=-1))
    predictions = run_of(tmp_path).read("predictions").to_pydict()
    assert predictions["idx"] == list(range(0, 37, 2))
    assert -1 not in predictions["target"]
