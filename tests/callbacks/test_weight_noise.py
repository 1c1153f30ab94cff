"""WeightNoise: gradients under noise, updates of clean weights, in every way of training."""

import copy
import math

import contract_checks as checks
import lightning.pytorch as L
import pytest
import torch
from contract_modules import MODULES, Images, Manual, ModuleCase, TupleBatch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from probe_runs import folder_of
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from firstlight.callbacks import FisherTraceMonitor, GradualUnfreezing, WeightNoise
from firstlight.functional import NoiseRule, noise_groups, perturb_weights

ALL = {"mode": "all", "group_by": "tensor", "scale": "absolute"}


class Still(TupleBatch):
    """Learning rate 0: weights move only where noise is left behind. Keeps what it was run at."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(learned(self))
        return super().training_step(batch, index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0, momentum=0.9, weight_decay=0.1)


class SkipsEveryThird(Still):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return None if index % 3 == 2 else loss


class LeavesTheEpoch(Still):
    def on_train_batch_start(self, batch, index):
        return -1 if index == 3 else None


class Overflows(Still):
    """Gradients that no float16 holds, in every second step."""

    def training_step(self, batch, index):
        return super().training_step(batch, index) * (1e30 if index % 2 else 1.0)


class StillByHand(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.0) for part in (self.net[0], self.net[-1])]


def learned(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Weights(L.Callback):
    """The weights before each batch, as other callbacks see them."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append(learned(pl_module))


def start_of(build):
    checks.seed_all(7)
    return learned(build())


def half(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


SETTINGS = {
    "plain": (Still, dict),
    "accumulated": (Still, lambda: {"accumulate_grad_batches": 4}),
    "bf16-mixed": (Still, lambda: {"precision": "bf16-mixed"}),
    "clipped": (Still, lambda: {"gradient_clip_val": 1e-3}),
    "skipped steps": (SkipsEveryThird, dict),
    "skipped steps, accumulated": (SkipsEveryThird, lambda: {"accumulate_grad_batches": 2}),
    "broken-off epochs": (LeavesTheEpoch, dict),
    "float16 scaler": (Still, lambda: half(8.0)),
    "float16 scaler that skips": (Overflows, lambda: half(2.0**15)),
    "by hand": (StillByHand, dict),
}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`.*")
@pytest.mark.parametrize("noise", [{"sigma": 0.5}, {"sigma": 0.5, **ALL}], ids=["layer", "all"])
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_is_left_of_the_noise(name, noise, tmp_path):
    build, settings = SETTINGS[name]
    callback, others = WeightNoise(**noise, noise_free=0), Weights()
    trainer, module = checks.fit(ModuleCase(build), tmp_path, [others, callback], **settings())
    start = start_of(build)
    assert same(learned(module), start)
    assert all(same(seen, start) for seen in others.seen), "noise lay on the weights after a batch"
    if "skips" in name:
        assert trainer.precision_plugin.scaler.get_scale() < 2**15
    for seen in getattr(module, "seen", []):
        assert not same(seen, start), "no noise in a step"


def test_nothing_is_left_in_a_compiled_module(tmp_path):
    case = ModuleCase(Still, compiled=True)
    _, module = checks.fit(case, tmp_path, [WeightNoise(0.5)])
    assert same(learned(module), start_of(Still))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error, tmp_path):
    class Fails(Still):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            raise error("in the step")

    checks.seed_all(7)
    module = Fails()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[WeightNoise(0.5, **ALL)], default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(error if error is ValueError else SystemExit):
        trainer.fit(module, ModuleCase(Fails).loader(), ModuleCase(Fails).loader())
    assert module.seen and not same(module.seen[0], learned(module))
    assert same(learned(module), start_of(Fails))
    assert folder_of(tmp_path).run["status"] == ("failed" if error is ValueError else "interrupted")


class SavesInTheStep(Still):
    """As Lightning does on a signal of SLURM, wherever the step is; one weight has two names."""

    def __init__(self):
        super().__init__()
        self.head = self.net[-1]

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/in_the_step.ckpt")
        return loss


def test_a_checkpoint_made_in_a_step_holds_clean_weights(tmp_path):
    _, module = checks.fit(
        ModuleCase(SavesInTheStep), tmp_path, [WeightNoise(0.5, **ALL, noise_free=0)]
    )
    assert not same(module.seen[-1], learned(module))
    saved = torch.load(next(tmp_path.rglob("in_the_step.ckpt")))["state_dict"]
    assert "head.weight" in saved
    for name, weight in module.named_parameters(remove_duplicate=False):
        assert torch.equal(saved[name], weight), name


class SkipsTheLastPart(TupleBatch):
    """The last micro-batch of two gives nothing: the optimiser steps all the same."""

    def training_step(self, batch, index):
        return None if index % 2 else super().training_step(batch, index)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`.*")
def test_an_update_after_a_skipped_part_is_not_undone(tmp_path):
    """The restoring must come before it, though no backward pass did."""
    ends = []
    for sigma in (0.0, 1e-7):
        _, module = checks.fit(
            ModuleCase(SkipsTheLastPart), tmp_path, [WeightNoise(sigma, noise_free=0)],
            accumulate_grad_batches=2,
        )  # fmt: skip
        ends.append(torch.cat([p.flatten() for p in learned(module).values()]))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4
    start = torch.cat([p.flatten() for p in start_of(SkipsTheLastPart).values()])
    assert float((ends[0] - start).abs().max()) > 1e-2


# ------------------------------------------------------------------ the method itself


class Plain(TupleBatch):
    """No dropout, no BatchNorm, no validation, double precision, plain SGD with decay."""

    validation_step = L.LightningModule.validation_step

    def __init__(self, rate=0.05, decay=0.01):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 3))
        self.rate, self.decay = rate, decay
        self.double()

    def logits(self, batch):
        return self.net(batch[0].double())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate, weight_decay=self.decay)


def fit_plain(callbacks, tmp_path, epochs=2, batch=8, build=Plain, **settings):
    checks.seed_all(7)
    module = build()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
        default_root_dir=tmp_path, **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Images(), batch))
    return module


def by_hand(steps, sigma, rule, seed, build=Plain):
    """The published loop: noise, gradient, noise off, step."""
    checks.seed_all(7)
    module = build()
    optimizer, groups = module.configure_optimizers(), noise_groups(module, rule.group_by)
    batches = list(DataLoader(Images(), 8))
    for step in range(steps):
        with perturb_weights(groups, sigma(step), step, rule, seed=seed):
            x, y = batches[step % len(batches)]
            loss = F.cross_entropy(module.logits((x, y)), y)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("rule", [NoiseRule(), NoiseRule("random", "module", "filter"),
                                  NoiseRule("all", "tensor", "absolute")])  # fmt: skip
def test_it_is_the_published_loop_with_that_schedule(rule, tmp_path):
    """Bit for bit; of 10 steps the last is free of noise, and sigma halves at step 4."""
    callback = WeightNoise(
        [[0, 0.4], [4, 0.2]], rule.mode, rule.group_by, rule.scale, noise_free="10%", seed=3
    )
    found = fit_plain([callback], tmp_path)

    def sigma(step):
        return 0.4 if step < 4 else 0.2 if step < 9 else 0.0

    assert same(learned(found), learned(by_hand(10, sigma, rule, 3)))
    events = folder_of(tmp_path).read("events").to_pylist()
    assert [(e["step"], e["kind"], e["reason"]) for e in events] == [
        (0, "noise", "sigma 0.4"),
        (4, "noise", "sigma 0.4 -> 0.2"),
        (9, "noise", "sigma 0.2 -> 0"),
    ]


def test_four_parts_of_four_are_one_batch_of_sixteen(tmp_path):
    ends = []
    for batch, parts in ((16, 1), (4, 4)):

        class Even(Plain):
            """32 examples, so that all updates are of 16."""

        callback = WeightNoise(0.5, **ALL, noise_free=0, seed=1)
        module = fit_plain(
            [callback], tmp_path, 4, batch, Even,
            accumulate_grad_batches=parts, limit_train_batches=32 // batch,
        )  # fmt: skip
        ends.append(learned(module))
    assert max(float((ends[0][n] - ends[1][n]).abs().max()) for n in ends[0]) < 1e-12
    clean = learned(fit_plain([], tmp_path, 4, 16, Even, limit_train_batches=2))
    assert max(float((ends[0][n] - clean[n]).abs().max()) for n in clean) > 1e-3


# ------------------------------------------------------------------ Anti-PGD


def undecayed():
    return Plain(decay=0.0)


@pytest.mark.parametrize("rule", [NoiseRule(scale="absolute"), NoiseRule(**ALL)])
def test_returned_weights_are_those_of_anti_pgd(rule, tmp_path):
    """Oracle: w <- w - η ∇L(w) + ξ_{t+1} - ξ_t by hand, 200 steps in float64."""
    callback = WeightNoise(
        0.05, rule.mode, rule.group_by, rule.scale, noise_free=0, returns="perturbed", seed=2
    )
    found = fit_plain([callback], tmp_path, 40, build=undecayed)

    checks.seed_all(7)
    module = undecayed()
    groups, batches = noise_groups(module, rule.group_by), list(DataLoader(Images(), 8))
    parameters = dict(module.named_parameters())

    def noise(step):
        with perturb_weights(groups, 0.05, step, rule, seed=2) as lying:
            return {name: parameters[name].detach() - lying.clean[name] for name in lying.clean}

    def move(change, sign):
        with torch.no_grad():
            for name, value in change.items():
                parameters[name].add_(value, alpha=sign)

    move(noise(0), 1)
    for step in range(200):
        x, y = batches[step % 5]
        loss = F.cross_entropy(module.logits((x, y)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        move(dict(zip(parameters, gradients, strict=True)), -0.05)
        move(noise(step), -1)
        move(noise(step + 1), 1)
    ends = learned(found), learned(module)
    assert max(float((ends[0][n] - ends[1][n]).abs().max()) for n in ends[0]) < 1e-12


@pytest.mark.parametrize("noise", [{"sigma": 0.2}, {"sigma": 0.05, **ALL}])
def test_both_views_are_one_iteration(noise, tmp_path):
    """w is z plus the coming noise, bit for bit, wherever others look; z is that of the default."""
    views = {}
    for view in ("clean", "perturbed"):
        watch = Weights()
        callback = WeightNoise(**noise, noise_free=2, returns=view, seed=4)
        module = fit_plain([watch, callback], tmp_path / view, build=Plain)
        views[view] = [*watch.seen, learned(module)]
    rule = callback.rule
    moved = 0
    for step, (z, w) in enumerate(zip(views["clean"], views["perturbed"], strict=True)):
        module.load_state_dict(z)
        with perturb_weights(
            noise_groups(module, rule.group_by), noise["sigma"] * (step < 8), step, rule, seed=4
        ):
            assert same(learned(module), w)
        moved += not same(z, w)
    assert moved == 8


def test_anti_pgd_is_refused_where_it_cannot_hold(tmp_path):
    pair = [WeightNoise(returns="perturbed"), EMAWeightAveraging()]
    with pytest.raises(ValueError, match=r"averages: take returns='clean'"):
        checks.fit(MODULES["tuple batch"], tmp_path, pair)


# ------------------------------------------------------------------ beside others


def test_others_see_clean_weights_wherever_they_stand(tmp_path):
    """A monitor listed behind it measures what it measures without it; checkpoints are clean."""
    values = []
    for noise in ([], [WeightNoise(0.5, **ALL)]):
        monitor = FisherTraceMonitor(
            every_n_train_steps=1, probe_size=13, probe_batch_size=5, batch_norm="warm"
        )
        root = tmp_path / str(len(noise))
        saving = ModelCheckpoint(root, every_n_train_steps=1, save_top_k=-1)
        trainer, _ = checks.fit(
            ModuleCase(Still), root, [*noise, monitor, saving], enable_checkpointing=True
        )
        rows = folder_of(root).read("fisher_trace").to_pylist()
        values.append([(r["step"], r["block"], r["value"]) for r in rows])
    assert values[0] == values[1] and len(values[0]) > 10
    assert [type(c).__name__ for c in trainer.callbacks][-2:] == ["WeightNoise", "ModelCheckpoint"]
    start, files = start_of(Still), list((tmp_path / "1").glob("*.ckpt"))
    assert len(files) == 10
    for file in files:
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(torch.equal(state[name], value) for name, value in start.items())


def test_frozen_blocks_get_none(tmp_path):
    class Watched(Still):
        def training_step(self, batch, index):
            self.moved.append({n for n, p in learned(self).items() if not torch.equal(p, first[n])})
            return super().training_step(batch, index)

        moved = []  # noqa: RUF012  # one list, of the class

    first = start_of(Watched)
    unfreezing = GradualUnfreezing(schedule=[[4, "stem"]])
    checks.fit(ModuleCase(Watched), tmp_path, [WeightNoise(0.5, noise_free=0), unfreezing])
    head, stem = {"net.5.weight"}, {"net.0.weight"}
    assert Watched.moved == [head] * 4 + [stem, head] * 3


def test_by_hand_with_two_optimisers_every_group_has_its_turn(tmp_path):
    """Both count as steps: two groups in turn at every second step would be one of them."""

    class Watched(StillByHand):
        moved = []  # noqa: RUF012  # one list, of the class

        def training_step(self, batch, index):
            self.moved += [n for n, p in learned(self).items() if not torch.equal(p, first[n])]
            super().training_step(batch, index)

    first = start_of(Watched)
    checks.fit(ModuleCase(Watched), tmp_path, [WeightNoise(0.5, noise_free=0)])
    assert Watched.moved == ["net.0.weight", "net.5.weight"] * 5


# ------------------------------------------------------------------ BatchNorm


def test_batch_norm_is_estimated_anew_when_the_noise_goes_off(tmp_path, capsys):
    """Oracle: torch's update_bn, over the same training examples."""

    class Normed(Still):
        def training_step(self, batch, index):
            if self.trainer.global_step == 8:
                self.at_switch = [copy.deepcopy(self.net[1])]
            return super().training_step(batch, index)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 0.05)

    callback = WeightNoise(0.5, noise_free=2, batch_norm_examples=37)
    _, module = checks.fit(ModuleCase(Normed), tmp_path, [callback])
    (norm,) = module.at_switch
    reference = copy.deepcopy(module.net)
    reference.load_state_dict({k.removeprefix("net."): v for k, v in module.seen[8].items()}
                              | {"1.running_mean": norm.running_mean,
                                 "1.running_var": norm.running_var,
                                 "1.num_batches_tracked": norm.num_batches_tracked})  # fmt: skip
    update_bn([Images().images], reference)
    torch.testing.assert_close(norm.running_mean, reference[1].running_mean)
    torch.testing.assert_close(norm.running_var, reference[1].running_var)
    assert norm.momentum == 0.1 and norm.training
    said = " ".join(capsys.readouterr().out.split())
    assert "statistics of 1 BatchNorm layers estimated on 37 examples" in said
    events = folder_of(tmp_path).read("events").to_pylist()
    assert events[-1]["step"] == 8 and "37 examples" in events[-1]["reason"]


def test_frozen_statistics_are_left_alone(tmp_path):
    class Frozen(Still):
        def on_train_epoch_start(self):
            self.net[1].eval()

    callback = WeightNoise(0.5, batch_norm_examples=16)
    _, module = checks.fit(ModuleCase(Frozen), tmp_path, [callback])
    assert not module.net[1].running_mean.any()


def test_batches_that_cannot_be_read_are_refused_at_the_start(tmp_path):
    class Odd(Still):
        def adapter(self, batch):
            raise KeyError("no such thing")

    with pytest.raises(KeyError):
        checks.fit(ModuleCase(Odd), tmp_path, [WeightNoise(batch_norm_examples=8)])


# ------------------------------------------------------------------ refusals


class ByHand(Manual):
    """Stepped by hand, in some way."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def training_step(self, batch, index):
        self.way(self, batch, lambda: TupleBatch.training_step(self, batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.05)


def two_before_the_step(module, batch, loss):
    first, second = loss(), loss()
    module.manual_backward(first, retain_graph=True)
    module.manual_backward(second)
    module.optimizers().step()


def one_after_the_step(module, batch, loss):
    module.manual_backward(loss())
    module.optimizers().step()
    module.manual_backward(loss())


def unseen_step(module, batch, loss):
    module.manual_backward(loss())
    module.optimizers(use_pl_optimizer=False).step()


def sharpness_aware(module, batch, loss):
    """As SAM does: to the worst point, and back by another storage."""
    module.manual_backward(loss())
    before = [p.data.clone() for p in module.parameters()]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(p.grad, alpha=0.05)
    module.manual_backward(loss())
    for p, value in zip(module.parameters(), before, strict=True):
        p.data = value
    module.optimizers().step()


def fit_by_hand(way, tmp_path):
    case = ModuleCase(lambda: ByHand(way))
    return checks.fit(case, tmp_path, [WeightNoise(0.1)], epochs=1)


def test_backward_passes_before_a_step_by_hand_share_the_noise(tmp_path):
    fit_by_hand(two_before_the_step, tmp_path)


def test_a_backward_pass_after_it_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="a backward pass after the first optimiser's step"):
        fit_by_hand(one_after_the_step, tmp_path)


@pytest.mark.parametrize("way", [unseen_step, sharpness_aware])
def test_updates_that_would_be_undone_are_refused(way, tmp_path):
    with pytest.raises(RuntimeError, match="changed while noise lay on it"):
        fit_by_hand(way, tmp_path)


class LineSearch(TupleBatch):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Twice(torch.optim.SGD):
    """Evaluates its closure twice, as SAM by closures."""

    def step(self, closure):
        closure()
        return super().step(closure)


class TwoClosures(TupleBatch):
    def configure_optimizers(self):
        return Twice(self.parameters(), 0.1)


class NoMatrix(TupleBatch):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LayerNorm(48))


class AllFrozen(TupleBatch):
    def __init__(self):
        super().__init__()
        self.net.requires_grad_(False)
        self.net[-1].bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (LineSearch, ValueError, "WeightNoise cannot be used with LBFGS"),
        (TwoClosures, RuntimeError, "asked for a second gradient in one step"),
        (NoMatrix, ValueError, "NoMatrix has no tensor of two or more dimensions"),
        (AllFrozen, ValueError, "no parameter of the groups requires a gradient"),
    ],
)
def test_modules_and_optimisers_that_do_not_fit_are_refused(build, error, message, tmp_path):
    with pytest.raises(error, match=message):
        checks.fit(ModuleCase(build), tmp_path, [WeightNoise()])


def test_a_run_without_end_has_no_noise_free_end(tmp_path):
    with pytest.raises(ValueError, match="noise_free='10%' counts from the end of the run"):
        checks.fit(MODULES["tuple batch"], tmp_path, [WeightNoise()], epochs=-1)


def test_a_strategy_that_splits_the_module_is_refused():
    class FSDPStrategy:
        pass

    class Trainer:
        strategy = FSDPStrategy()

    with pytest.raises(ValueError, match="WeightNoise needs the whole module in every process"):
        WeightNoise().setup(Trainer(), None, "fit")


# ------------------------------------------------------------------ what is said, presets, resume


def test_the_start_says_what_will_be_done(tmp_path, capsys):
    checks.fit(MODULES["tuple batch"], tmp_path, [WeightNoise(0.3)])
    line = capsys.readouterr().out.splitlines()[0]
    assert "one of 2 groups in turn gets Gaussian noise (group_by=matrix, scale=rms)" in line
    assert "sigma 0.3, off from step 9: at the largest 0.3 times the root mean square" in line
    assert "0 of the groups (0%) hold only biases or norm parameters. No pass is added" in line


def test_the_preset_is_the_authors_setting(tmp_path, capsys):
    callback = WeightNoise(preset="2206.04613")
    assert callback.rule == NoiseRule("round_robin", "tensor", "absolute")
    assert (callback.sigma, callback.noise_free) == (0.03, 0)
    checks.fit(MODULES["tuple batch"], tmp_path, [callback])
    line = capsys.readouterr().out.splitlines()[0]
    assert "4 of the groups (67%) hold only biases" in line and "1 of 6 tensors are zero" in line
    assert WeightNoise(preset="2206.04613", sigma=[[0, 0.03]][0][1]).sigma == 0.03


@pytest.mark.parametrize("view", ["clean", "perturbed"])
@pytest.mark.parametrize("noise", [{"sigma": 0.3}, {"sigma": 0.05, **ALL}])
def test_resumed_anywhere_equals_uninterrupted(view, noise, tmp_path):
    """The module holds perturbed weights in its checkpoints, and the run goes on from the clean."""

    def run(ckpt=None):
        checks.seed_all(7 if ckpt is None else 8)
        module, callback = Plain(), WeightNoise(**noise, returns=view, seed=5)
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            max_epochs=10, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback, saving], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, DataLoader(Images(), 37), ckpt_path=ckpt)
        return module, callback

    whole, _ = run()
    for step in (3, 5, 9):
        saved = tmp_path / f"step={step}.ckpt"
        state = torch.load(saved, weights_only=True)["callbacks"]["WeightNoise"]
        assert bool(state["clean"]) == (view == "perturbed" and step < 9)
        resumed, callback = run(saved)
        assert same(learned(resumed), learned(whole))
        assert callback.state_dict()["seed"] == 5


def test_a_checkpoint_of_another_module_is_refused():
    with pytest.raises(ValueError, match=r"holds clean weights of other\.weight"):
        WeightNoise._take_up({}, {"other.weight": torch.zeros(1)})


def test_noise_is_keyed_by_the_seed(tmp_path):
    ends = [learned(fit_plain([WeightNoise(0.5, seed=seed)], tmp_path, 1)) for seed in (1, 1, 2)]
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])
    assert math.isfinite(float(ends[0]["net.1.weight"].sum()))
