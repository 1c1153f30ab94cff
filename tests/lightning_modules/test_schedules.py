import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from firstlight.lightning_modules import WarmupCosineLR, WarmupMultiStepLR


def optimizer_with_rates(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates_over(optimizer, scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def test_multistep_default_is_the_published_recipe():
    optimizer = optimizer_with_rates(0.1)
    rates = rates_over(optimizer, WarmupMultiStepLR(optimizer), 200)
    published = {1: 0.02, 5: 0.1, 6: 0.1, 160: 0.1, 161: 0.001, 180: 0.001, 181: 0.00001}
    for epoch, rate in published.items():
        assert rates[epoch - 1] == [pytest.approx(rate, abs=1e-12)]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch
@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_follows_torchs_own_chain_in_every_group(final):
    optimizer, reference = optimizer_with_rates(0.1), optimizer_with_rates(0.1)
    scheduler = WarmupCosineLR(optimizer, warmup=5, total=30, final=final)
    chain = SequentialLR(
        reference,
        [
            LinearLR(reference, start_factor=1 / 5, total_iters=4),
            CosineAnnealingLR(reference, T_max=25, eta_min=0.1 * final),
        ],
        milestones=[5],
    )
    ours = rates_over(optimizer, scheduler, 31)
    assert torch.allclose(
        torch.tensor(ours), torch.tensor(rates_over(reference, chain, 31)), rtol=1e-5, atol=1e-8
    )
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * final)  # stays at the end


@pytest.mark.parametrize("kind", [WarmupCosineLR, WarmupMultiStepLR])
def test_groups_keep_their_ratio_and_state_resumes(kind):
    arguments = {"warmup": 3, **({"total": 20} if kind is WarmupCosineLR else {"milestones": [9]})}
    optimizer = optimizer_with_rates(0.1, 0.025)
    scheduler = kind(optimizer, **arguments)
    whole = rates_over(optimizer, scheduler, 18)
    assert all(low == pytest.approx(high / 4) for high, low in whole)

    first = optimizer_with_rates(0.1, 0.025)
    scheduler = kind(first, **arguments)
    start = rates_over(first, scheduler, 7)
    second = optimizer_with_rates(0.1, 0.025)
    resumed = kind(second, **arguments)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert start + rates_over(second, resumed, 11) == whole


def test_bad_arguments_are_refused():
    optimizer = optimizer_with_rates(0.1)
    with pytest.raises(ValueError, match=r"warmup \(5\).*total \(5\)"):
        WarmupCosineLR(optimizer, warmup=5, total=5)
    with pytest.raises(ValueError, match="share of the base rate"):
        WarmupCosineLR(optimizer, warmup=0, total=5, final=2)
    with pytest.raises(ValueError, match="warmup"):
        WarmupMultiStepLR(optimizer, warmup=5, milestones=[3])
    with pytest.raises(ValueError, match="gamma"):
        WarmupMultiStepLR(optimizer, gamma=0)
