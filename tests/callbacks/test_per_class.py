"""PerClassMonitor's own behaviour; what it shares with other callbacks is in test_contract.py."""

import csv
from pathlib import Path

import contract_checks as checks
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from contract_modules import CLASSES, MODULES, Images, ModuleCase, TupleBatch, network
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from firstlight.callbacks import PerClassMonitor
from firstlight.callbacks.classes import Classes
from firstlight.callbacks.evaluation import Evaluation
from firstlight.callbacks.per_class_report import _image, show_worst
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
    assert set(table["split"]) == {"test", "test/odd"}
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


def test_what_the_module_logs_is_in_the_run_folder(tmp_path):
    """Every epoch's values are those that Lightning's CSVLogger wrote; ours are left to tables."""
    logger = CSVLogger(tmp_path)
    checks.seed_all(7)
    module = MODULES["ImageClassifier"].build()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[PerClassMonitor()],
    )  # fmt: skip
    trainer.fit(module, MODULES["ImageClassifier"].loader(), MODULES["ImageClassifier"].loader())
    rows = run_of(tmp_path).read("scalars").to_pylist()
    found = {(r["key"], r["epoch"]): r["value"] for r in rows if r["key"] != "train/loss_step"}
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    keys = ("train/loss", "train/top1", "val/loss", "val/top1")
    expected = {(k, int(r["epoch"])): float(r[k]) for r in logged for k in keys if r.get(k)}
    assert len(expected) == 3 * 4
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert {r["step"] for r in rows} == {5, 10, 15}
    assert not [r["key"] for r in rows if "per_class" in r["key"]]


def test_the_sanity_check_leaves_nothing(tmp_path):
    checks.fit(MODULES["tuple batch"], tmp_path, [PerClassMonitor()], epochs=1)
    assert run_of(tmp_path).read("per_class")["step"].to_pylist() == [5, 5, 5]


def test_names_of_classes_are_printed_as_they_are(tmp_path, capsys):
    """And not taken for the terminal's markup, which drops them, or refuses them after the run."""
    names = ["[/b]", "a [seat]", ":cat:"]
    checks.fit(MODULES["tuple batch"], tmp_path, [PerClassMonitor(class_names=names)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


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


def test_a_shuffling_batch_sampler_is_noticed(tmp_path):
    batches = [list(range(36, 18, -1)), list(range(19))]
    loader = DataLoader(Images(), batch_sampler=batches)
    evaluate(MODULES["tuple batch"], tmp_path, PerClassMonitor(), loader=loader)
    assert run_of(tmp_path).read("predictions").num_rows == 0
    assert run_of(tmp_path).read("per_class")["n"].to_pylist() == [20, 11, 6]


def with_logits(make):
    """A module whose step makes its logits by ``make(self, x)``."""

    class Module(TupleBatch):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(CLASSES, CLASSES)
            self.softmax = torch.nn.Softmax(1)

        def logits(self, batch):
            return make(self, batch[0])

    return ModuleCase(Module)


def test_features_of_forward_are_not_taken_for_logits(tmp_path):
    class Module(TupleBatch):
        """forward gives features; the step puts them through a head."""

        def __init__(self):
            super().__init__()
            body = network()
            self.net, self.head = body[:-1], body[-1]

        def logits(self, batch):
            return self.head(self(batch[0]))

    _, model = evaluate(ModuleCase(Module), tmp_path, PerClassMonitor())
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model.logits(b) for b in ModuleCase(Module).loader()]).argmax(1)
    assert run_of(tmp_path).read("predictions")["pred"].to_pylist() == expected.tolist()


def test_several_outputs_of_one_width_are_refused_by_name(tmp_path):
    case = with_logits(lambda self, x: self.head(self.net(x)))
    message = r"several outputs.*net \(width 3\), head \(width 3\).*adapter"
    with pytest.raises(TypeError, match=message):
        evaluate(case, tmp_path, PerClassMonitor())


def test_an_adapter_says_which_output_is_meant(tmp_path):
    case = with_logits(lambda self, x: self.head(self.net(x)))

    def adapter(pl_module, batch):
        return batch[0], batch[1], lambda x: pl_module.head(pl_module.net(x))

    _, model = evaluate(case, tmp_path, PerClassMonitor(adapter=adapter))
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model.logits(batch) for batch in case.loader()]).argmax(1)
    assert run_of(tmp_path).read("predictions")["pred"].to_pylist() == expected.tolist()


def test_probabilities_are_told_from_logits(tmp_path, capsys):
    case = with_logits(lambda self, x: self.softmax(self.net(x)))
    _, model = evaluate(case, tmp_path / "both", PerClassMonitor())
    model.eval()
    with torch.no_grad():
        p = torch.cat([model.net(x).softmax(1) for x, _ in case.loader()])
    confidence = run_of(tmp_path / "both").read("predictions")["p_pred"].to_numpy()
    np.testing.assert_allclose(confidence, p.amax(1), rtol=1e-5)

    case = with_logits(lambda self, x: self.softmax(self.net.forward(x)))
    evaluate(case, tmp_path / "alone", PerClassMonitor())
    confidence = run_of(tmp_path / "alone").read("predictions")["p_pred"].to_numpy()
    np.testing.assert_allclose(confidence, p.amax(1), rtol=1e-5)
    assert "their logarithm is taken" in capsys.readouterr().out


def test_a_layer_named_adapter_is_no_adapter(tmp_path):
    class Tuned(TupleBatch):
        def __init__(self):
            super().__init__()
            self.adapter = torch.nn.Identity()

    evaluate(ModuleCase(Tuned), tmp_path, PerClassMonitor())
    assert run_of(tmp_path).read("per_class").num_rows == CLASSES


def test_a_head_of_the_wrong_size_is_refused(tmp_path):
    case = MODULES["tuple batch"]
    module = case.build()
    module.net[-1] = torch.nn.Linear(64, 10)
    with pytest.raises(ValueError, match=r"logits have 10 classes, the data 3. Is the head"):
        evaluate(case, tmp_path, PerClassMonitor(), module=module)


def test_wrong_lengths_are_refused_in_the_sanity_check(tmp_path):
    class Counts(L.Callback):
        batches = 0

        def on_train_batch_end(self, *_):
            self.batches += 1

    counter = Counts()
    with pytest.raises(ValueError, match="class_counts has 2 entries"):
        checks.fit(
            MODULES["tuple batch"], tmp_path, [PerClassMonitor(class_counts=(5, 5)), counter]
        )
    assert counter.batches == 0


def test_hooks_go_after_an_exception(tmp_path):
    class Fails(TupleBatch):
        def training_step(self, batch, index):
            raise RuntimeError("of purpose")

    module = Fails()
    with pytest.raises(RuntimeError, match="of purpose"):
        checks.fit(ModuleCase(lambda: module), tmp_path, [PerClassMonitor(["train"])])
    assert not any(m._forward_hooks for m in module.modules())


def test_two_monitors_need_two_names(tmp_path):
    case = MODULES["tuple batch"]
    pair = [PerClassMonitor(), PerClassMonitor(ignore_index=0, name="rest")]
    checks.fit(case, tmp_path, pair, epochs=1)
    counts = run_of(tmp_path).read("per_class").to_pylist()
    assert {row["n"] for row in counts if row["split"] == "val" and row["class"] == 0} == {20}
    assert {row["n"] for row in counts if row["split"] == "val/rest" and row["class"] == 0} == {0}
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        checks.fit(case, tmp_path, [PerClassMonitor(), PerClassMonitor(ignore_index=0)])


class Noisy(Images):
    """Items draw from every random state, as augmenting data sets do."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + 0 * torch.rand(1) + 0 * np.random.rand(), target  # noqa: NPY002


def test_reading_examples_moves_no_random_state(tmp_path):
    states = []
    for make in (list, lambda: [PerClassMonitor()]):
        evaluate_with = make()
        checks.seed_all(3)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=evaluate_with,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.validate(TupleBatch(), DataLoader(Noisy(), 8), verbose=False)
        states.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert states[0] == states[1]


def saved_run(root, epochs=2):
    saving = ModelCheckpoint(root, save_last=True, save_top_k=-1)
    monitor = PerClassMonitor()
    checks.fit(
        MODULES["tuple batch"], root, [monitor, saving], epochs=epochs, enable_checkpointing=True
    )
    return monitor


# Lightning asks for the ModelCheckpoint of the training run, which evaluation does not need.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*")
@pytest.mark.filterwarnings("ignore:The dirpath has changed.*")
def test_testing_a_checkpoint_leaves_the_training_run_alone(tmp_path):
    saved_run(tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[PerClassMonitor()], default_root_dir=tmp_path / "test",
    )  # fmt: skip
    trainer.test(
        TupleBatch(), MODULES["tuple batch"].loader(), verbose=False,
        ckpt_path=tmp_path / "run" / "last.ckpt",
    )  # fmt: skip
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    table = run_of(tmp_path / "test").read("per_class").to_pydict()
    assert set(zip(table["step"], table["epoch"], strict=True)) == {(10, 1)}


def test_a_monitor_used_again_has_a_folder_of_its_own(tmp_path):
    monitor = saved_run(tmp_path / "first")
    before = run_of(tmp_path / "first").read("per_class")
    checks.fit(MODULES["tuple batch"], tmp_path / "second", [monitor], epochs=1)
    assert run_of(tmp_path / "first").read("per_class").equals(before)
    assert set(run_of(tmp_path / "second").read("per_class")["step"].to_pylist()) == {5}


# As above; and the run is resumed in its own folder.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*")
def test_resuming_an_earlier_checkpoint_forgets_what_came_after(tmp_path):
    saved_run(tmp_path, epochs=3)
    (early,) = tmp_path.glob("epoch=0*.ckpt")
    case = MODULES["tuple batch"]
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[PerClassMonitor()],
    )  # fmt: skip
    trainer.fit(case.build(), case.loader(), case.loader(), ckpt_path=early)
    assert sorted(set(run_of(tmp_path).read("per_class")["step"].to_pylist())) == [5, 10]


def test_the_printed_table_says_what_was_counted(capsys):
    """Class b: 30 of 40 right, predicted 60 times; scipy's Wilson interval of that is 60 to 86."""
    evaluation = Evaluation("test", None, 2, None)
    columns = {"n": [10, 40], "correct": [10, 30], "pred_count": [0, 60]}
    evaluation.result = {k: torch.tensor(v) for k, v in columns.items()}
    evaluation.table = {"target": np.array([1, 1, 0]), "pred": np.array([0, 0, 0])}
    classes = Classes(("a", "b"), (7, 1234), None, (None, "few"), ())
    show_worst(evaluation, classes, 1)
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.strip().startswith("b"))
    assert row.split() == ["b", "75.0", "60", "to", "86", "50.0", "40", "a", "(2)", "few", "1,234"]
    caption = " ".join(printed.split())
    assert "accuracy 80.0 %, mean over classes 87.5 %" in caption
    # Two classes of 25 (the median of 10 and 40) at 80 %: the mean of the lower, simulated.
    chance = np.random.default_rng(0).binomial(25, 0.8, (100_000, 2)).min(1).mean() / 25
    assert f"the worst would show about {100 * chance:.0f} %" in caption


def test_examples_have_the_colours_of_the_images(tmp_path):
    pixels = torch.tensor([10, 120, 250], dtype=torch.uint8)[:, None, None].expand(3, 5, 5)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.1]
    scaled = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    told = type("Data", (), {"mean": mean, "std": std})()
    for item in (pixels, scaled):
        image = _image([(item, 0)], 0, told)
        assert image.getpixel((2, 2)) == (10, 120, 250)


def test_a_run_says_its_place_in_a_study(tmp_path):
    """Also where another callback made the run folder first."""
    study = {"arm": "crop .08", "factor": "crop", "strength": 0.08}
    case = MODULES["tuple batch"]
    monitors = [PerClassMonitor(name="first"), PerClassMonitor(study=study)]
    trainer = case.trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=monitors,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.validate(case.build(), case.loader(), verbose=False)
    run = run_of(tmp_path).run
    assert {key: run[key] for key in study} == study


def test_groups_that_the_data_module_knows_are_shown_and_written(tmp_path, capsys):
    case = MODULES["tuple batch"]

    class Data(L.LightningDataModule):
        class_groups = {"realm": ["sea", "land", "sea"]}  # noqa: RUF012  # as users write it

        def val_dataloader(self):
            return case.loader()

    evaluate(case, tmp_path, PerClassMonitor(), loader=Data())
    run = run_of(tmp_path)
    counts = run.read("per_class").to_pydict()
    accuracy = [c / n for c, n in zip(counts["correct"], counts["n"], strict=True)]
    table = run.read("predictions").to_pydict()
    near = sum(t % 2 == p % 2 for t, p in zip(table["target"], table["pred"], strict=True))
    rows = {row["block"]: row for row in run.read("class_groups").to_pylist()}
    assert rows[""]["value"] == pytest.approx(near / 37)
    assert rows["land"]["value"] == pytest.approx(accuracy[1])
    assert rows["sea"]["value"] == pytest.approx((accuracy[0] + accuracy[2]) / 2)
    assert (rows[""]["n"], rows["sea"]["n"], rows["sea"]["kind"]) == (37, 2, "realm")
    assert "val: by groups of classes" in capsys.readouterr().out


def test_the_counts_trained_on_and_those_before_the_cuts_stay_two(tmp_path):
    case = MODULES["tuple batch"]

    class Data(L.LightningDataModule):
        class_counts = [90, 40, 8]  # noqa: RUF012  # as users write it
        full_class_counts = [110, 50, 10]  # noqa: RUF012  # likewise

        def val_dataloader(self):
            return case.loader()

    evaluate(case, tmp_path, PerClassMonitor(), loader=Data())
    classes = run_of(tmp_path).read("classes").to_pydict()
    assert classes["train_count"] == [90, 40, 8]
    assert classes["full_count"] == [110, 50, 10]
    assert classes["shot"] == ["many", "medium", "few"]  # by the full counts
