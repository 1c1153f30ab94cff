"""What GradualUnfreezing does beyond the contract of every callback."""

from functools import partial
from types import SimpleNamespace

import contract_checks as checks
import lightning.pytorch as L
import pytest
import torch
from contract_modules import MODULES, Images, ModuleCase, Text, Tokens, TupleBatch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from firstlight.callbacks import GradualUnfreezing
from firstlight.callbacks.unfreezing_plan import bounded
from firstlight.datamodules import DigitsDataModule
from firstlight.functional import StabilityRule, average_sharpness, worst_case_sharpness
from firstlight.functional.unfreezing_schedule import RunLength
from firstlight.lightning_modules import ImageClassifier

RULE = StabilityRule(every=1, window=1, quiet=1, longest=6)


def end_of(root, module="ImageClassifier", **arguments):
    callback = GradualUnfreezing(**{"probe_size": 13, **arguments})
    _, trained = checks.fit(MODULES[module], root, [callback], epochs=5)
    return callback, trained.state_dict()


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_pilot_leaves_no_trace_but_the_interval(tmp_path):
    """Bitwise the run whose interval was known from the start; random numbers and data included."""
    piloted, end = end_of(tmp_path / "pilot", interval="pilot", rule=RULE)
    interval = piloted._decision.steps
    assert same(end, end_of(tmp_path / "known", interval=interval)[1])
    assert not same(end, end_of(tmp_path / "other", interval=interval + 1)[1])


def test_a_pilot_takes_the_probe_of_the_data_module(tmp_path):
    """Not examples of the data set, which a DataModule may keep as no network takes them: uint8."""
    data = DigitsDataModule(img_size=8, batch_size=256, seed=0)
    callback = GradualUnfreezing(interval="pilot", rule=RULE, probe_size=13)
    model = ImageClassifier("resnet20_cifar", seed=0)
    trainer = L.Trainer(max_epochs=10, accelerator="cpu", limit_val_batches=0, logger=False,
                        default_root_dir=tmp_path, callbacks=[callback],
                        enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(model, data)
    assert callback._decision is not None
    assert data.trainer is trainer


def test_watching_a_signal_leaves_no_trace(tmp_path):
    """Bitwise the run whose openings were known from the start."""
    watched, end = end_of(tmp_path / "auto", rule=RULE)
    schedule = [[one.step, one.block] for one in watched._openings]
    assert len(schedule) == 4
    assert same(end, end_of(tmp_path / "known", schedule=schedule)[1])


def test_a_pilot_too_short_to_judge_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of 3 steps .* gives 4 samples, one every 1 steps"):
        end_of(tmp_path, interval="pilot")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, (10, 800)), (16_000, (10, 800)), (8_000, (10, 400)), (1_560, (3, 78)), (9, (1, 1))],
)
def test_a_short_run_bounds_the_rule_and_samples_more_often(steps, expected):
    rule = bounded(StabilityRule(), 10, RunLength(steps, None))
    assert (rule.every, rule.longest) == expected


def test_an_interval_that_does_not_fit_is_refused_with_one_that_does(tmp_path):
    with pytest.raises(ValueError, match="the run ends after 25: interval=6 is the longest"):
        end_of(tmp_path, interval=7)
    end_of(tmp_path, interval=6)


class FrozenAreUntouched(checks.L.Callback):
    """Keeps the network as it was at each update, beside what was open then."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.seen.append((trainer.global_step, state))


def test_frozen_parameters_and_statistics_do_not_move_until_their_step(tmp_path):
    """With momentum and weight decay on; every block moves with the update after its opening."""
    watch = FrozenAreUntouched()
    callback = GradualUnfreezing(interval=4, batch_norm="eval")
    checks.fit(MODULES["ImageClassifier"], tmp_path, [callback, watch], epochs=5)
    names = {block: f"model.{block}." for block in ("layer3", "layer2", "layer1")}
    steps = {"layer3": 3, "layer2": 7, "layer1": 11}
    before = watch.seen[0][1]
    for step, state in watch.seen[1:]:
        for block, prefix in names.items():
            keys = [key for key in state if key.startswith(prefix) and "num_batches" not in key]
            still = all(torch.equal(state[key], before[key]) for key in keys)
            assert still == (step <= steps[block]), (block, step)


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_scaled_updates_are_those_of_a_scaled_rate(scale, tmp_path):
    """Of all but the head: the same run with the optimiser's own rate scaled, on one block."""
    ends = []
    for label in ("scaled", "rate"):
        case = MODULES["tuple batch"]
        arguments = {"schedule": [[0, "stem"]], "batch_norm": "train"}
        if label == "scaled":
            arguments["lr_scale"] = scale
        rate = None if label == "scaled" else SetRate(scale)
        callbacks = [GradualUnfreezing(**arguments), *([rate] if rate else [])]
        _, module = checks.fit(case, tmp_path / label, callbacks)
        ends.append(module.state_dict())
    for key in ends[0]:
        assert torch.allclose(ends[0][key], ends[1][key], rtol=1e-5, atol=1e-6), key


class SetRate(checks.L.Callback):
    """Gives the stem a group and a rate of its own."""

    def __init__(self, scale):
        self.scale = scale

    def on_train_start(self, trainer, pl_module):
        (group,) = trainer.optimizers[0].param_groups
        head = set(pl_module.net[-1].parameters())
        stem = [p for p in group["params"] if p not in head]
        rest = {key: value for key, value in group.items() if key not in ("params", "lr")}
        group["params"] = list(head)
        trainer.optimizers[0].add_param_group(
            {"params": stem, "lr": group["lr"] * self.scale, **rest}
        )


def test_all_is_trainable_again_after_the_fit(tmp_path):
    case = MODULES["ImageClassifier"]
    _, module = checks.fit(case, tmp_path, [GradualUnfreezing(schedule=[[2, "layer3"]])])
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())


def test_blocks_may_be_given(tmp_path):
    blocks = {"body": r"model\.(conv1|bn1|layer)", "head": ["model.fc"]}
    callback = GradualUnfreezing(interval=4, blocks=blocks)
    checks.fit(MODULES["ImageClassifier"], tmp_path, [callback], epochs=5)
    assert callback._opened == {"body": 3}


def test_blocks_that_leave_parameters_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="in no block"):
        checks.fit(
            MODULES["ImageClassifier"], tmp_path,
            [GradualUnfreezing(blocks={"head": ["model.fc"]})],
        )  # fmt: skip


def test_intervals_in_epochs_open_with_an_epoch(tmp_path):
    callback, _ = end_of(tmp_path, interval="1 epoch")
    assert callback._opened == {"layer3": 5, "layer2": 10, "layer1": 15, "stem": 20}


class Detached(TupleBatch):
    """Its loss does not reach the body."""

    def logits(self, batch):
        return self.net[-1](self.net[:-1](batch[0]).detach())


class HeadOnly(TupleBatch):
    """Its optimiser holds the head alone."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[-1].parameters(), 0.05)


class StandsStill(TupleBatch):
    """Learns nothing: what moves is BatchNorm's statistics."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_a_block_without_gradients_ends_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="opened 'stem' at step 1, but no gradient has reached"):
        checks.fit(ModuleCase(Detached), tmp_path, [GradualUnfreezing(interval=2)], epochs=5)


def test_a_block_in_no_optimiser_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no optimiser holds.*'stem' \(net.0.weight, ...\)"):
        checks.fit(ModuleCase(HeadOnly), tmp_path, [GradualUnfreezing(interval=2)])


@pytest.mark.parametrize(
    ("now", "message"),
    [({"start": 1}, "made with other start"), ({"interval": 5}, "the blocks open at the steps"),
     ({"interval": "auto"}, "made with other rule")],
)  # fmt: skip
def test_resuming_under_another_plan_is_refused(now, message, tmp_path):
    def fit(callbacks, **kwargs):
        case, module = MODULES["ImageClassifier"], MODULES["ImageClassifier"].build()
        trainer = case.trainer(
            max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, logger=False,
            callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, case.loader(), case.loader(), **kwargs)

    saving = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(checks.Stopped):
        fit([GradualUnfreezing(interval=3), saving, checks.StopsAt(5)])
    with pytest.raises(ValueError, match=message):
        fit([GradualUnfreezing(**{"interval": 3, **now}), saving], ckpt_path=tmp_path / "last.ckpt")


def test_a_signal_does_not_show_batch_norms_statistics(tmp_path):
    """At a learning rate of 0 nothing is learned, and the signal stands still."""
    rule = StabilityRule(every=2, longest=8)
    callback = GradualUnfreezing(rule=rule, probe_size=13)
    checks.fit(ModuleCase(StandsStill), tmp_path, [callback], epochs=5)
    values = {value for _, value in callback._watched.samples}
    assert len(callback._watched.samples) == 5 and len(values) == 1


@pytest.mark.parametrize(
    ("signal", "measure"),
    [
        ("average_sharpness", partial(average_sharpness, seed=3)),
        ("worst_case_sharpness", worst_case_sharpness),
    ],
)
def test_signals_are_the_functions_of_those_names(signal, measure, tmp_path):
    case = ModuleCase(Text, Tokens)
    callback = GradualUnfreezing(signal=signal, rule=RULE, probe_size=13, seed=3)
    checks.fit(case, tmp_path, [callback])
    probe = callback._watched.probe_set
    checks.seed_all(7)
    module = case.build()
    module.net[0].requires_grad_(False)  # the signal is of what is trained
    value = measure(module, probe.inputs, probe.targets, batch_size=32).value
    assert callback._watched.samples[0] == (0, pytest.approx(value, rel=1e-6))


class Staircase(checks.L.Callback):
    """A metric that changes at every third step, as one of validation does at every epoch."""

    def on_train_batch_start(self, trainer, *_):
        value = 1.0 / (1 + trainer.global_step // 3)
        trainer.callback_metrics["stairs"] = torch.tensor(value)


def test_a_metric_that_stands_between_two_evaluations_is_one_sample(tmp_path):
    rule = StabilityRule(every=1, longest=11)
    callback = GradualUnfreezing(signal="stairs", rule=rule)
    checks.fit(ModuleCase(TupleBatch, Images), tmp_path, [Staircase(), callback], epochs=5)
    assert [step for step, _ in callback._watched.samples] == [0, 3, 6, 9]
    assert callback._opened == {"stem": 11}


def test_a_metric_that_never_comes_is_said(tmp_path, capsys):
    rule = StabilityRule(every=1, longest=4)
    callback = GradualUnfreezing(signal="stair", rule=rule)
    checks.fit(ModuleCase(TupleBatch, Images), tmp_path, [Staircase(), callback])
    printed = capsys.readouterr().out
    assert printed.count("there is no metric 'stair' yet; there is stairs") == 1
    assert callback._opened == {"stem": 4}


def test_another_callback_that_freezes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="GradualUnfreezing and BackboneFinetuning would both"):
        checks.fit(
            ModuleCase(TupleBatch), tmp_path, [GradualUnfreezing(interval=2), BackboneFinetuning()]
        )


def test_a_static_graph_is_refused(tmp_path):
    strategy = DDPStrategy(static_graph=True, process_group_backend="gloo")
    trainer = SimpleNamespace(strategy=strategy, callbacks=[])
    with pytest.raises(ValueError, match="static_graph=True promises"):
        GradualUnfreezing().setup(trainer, None, "fit")


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_the_module_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy(), callbacks=[])
    with pytest.raises(
        ValueError, match=rf"{strategy.__name__} splits it. Train with strategy='ddp'"
    ):
        GradualUnfreezing().setup(trainer, None, "fit")
