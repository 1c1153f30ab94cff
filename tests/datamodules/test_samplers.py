"""Class-balanced and square-root sampling: the right shares, on any number of ranks."""

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from firstlight.datamodules import DigitsDataModule, ImageFolderDataModule
from firstlight.datamodules.samplers import ClassSampler, Draw

COUNTS = (3000, 900, 90, 10)
TARGETS = np.random.default_rng(0).permutation(np.repeat(range(4), COUNTS)).tolist()


@pytest.mark.parametrize(
    ("exponent", "by_hand"),
    [(0.0, [1, 1, 1, 1]), (0.5, [54.772, 30.0, 9.4868, 3.1623]), (1.0, COUNTS)],
)
def test_classes_come_in_their_shares_and_examples_of_a_class_alike(exponent, by_hand):
    """Oracle: Pearson's test against shares worked by hand from arXiv 1910.09217, eq. 1.

    Of 240,000 draws a share of 1/4 that is off by 2 % is off by 5.7 standard errors.
    """
    sampler, epochs = ClassSampler(TARGETS, exponent, seed=3), []
    for epoch in range(60):
        sampler.set_epoch(epoch)
        epochs.append(torch.tensor(list(sampler)))
    numbers = torch.cat(epochs)
    assert len(numbers) == 60 * 4000
    assert not torch.equal(epochs[0], epochs[1])
    of_class = torch.tensor(TARGETS)[numbers].bincount(minlength=4).numpy()
    expected = np.array(by_hand) / sum(by_hand) * len(numbers)
    assert chisquare(of_class, expected).pvalue > 1e-3
    wrong = expected * [1, 1.02, 1, 1]
    assert chisquare(of_class, wrong / wrong.sum() * len(numbers)).pvalue < 1e-2
    for k in range(4):
        within = numbers.bincount(minlength=4000)[torch.tensor(TARGETS) == k].numpy()
        assert chisquare(within).pvalue > 1e-3


@pytest.mark.parametrize("replicas", [2, 3])
def test_ranks_together_draw_what_one_process_draws(replicas):
    alone = list(ClassSampler(TARGETS[:100], 0.0, seed=1))
    ranks = [list(ClassSampler(TARGETS[:100], 0.0, 1, replicas, rank)) for rank in range(replicas)]
    together = [number for turn in zip(*ranks, strict=True) for number in turn]
    assert together[:100] == alone
    assert together[100:] == alone[: len(together) - 100]


def test_a_draw_is_a_number_that_knows_its_repeats():
    numbers = list(ClassSampler([0, 0, 0, 0, 1], 0.0, seed=0))
    rare = [number for number in numbers if number == 4]
    assert [getattr(draw, "repeat", 0) for draw in rare] == list(range(len(rare)))
    assert len(rare) > 1
    assert ["abcde"[number] for number in rare] == ["e"] * len(rare)
    assert pickle.loads(pickle.dumps(Draw(7, 3))).repeat == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_drawn_again_is_augmented_anew_whatever_the_workers(folder_root, workers):
    data = ImageFolderDataModule(
        str(folder_root), img_size=16, batch_size=4, seed=1, num_workers=workers,
        sampling="class_balanced",
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    images = torch.cat([x for x, _ in loader])
    order = list(loader.sampler)
    rare = [position for position, number in enumerate(order) if order.count(number) > 1]
    assert len(rare) > 5
    for a in rare:
        for b in rare:
            assert torch.equal(images[a], images[b]) == (a == b)
    assert torch.equal(images, torch.cat([x for x, _ in loader]))  # the same epoch once more


def test_a_data_module_balances_its_batches_and_says_so():
    """300 draws of 10 classes: each within 5 standard errors of 1 in 10."""
    plain, balanced = (
        DigitsDataModule(imbalance_factor=20, seed=0, sampling=sampling)
        for sampling in ("instance", "class_balanced")
    )
    for data in (plain, balanced):
        data.setup("fit")
    assert plain.class_counts == balanced.class_counts
    targets = torch.cat([y for _, y in balanced.train_dataloader()])
    assert len(targets) == sum(balanced.class_counts)
    share = targets.bincount(minlength=10) / len(targets)
    assert (share - 0.1).abs().max() < 5 * (0.09 / len(targets)) ** 0.5
    drawn = torch.tensor(balanced.sampling_weights) * torch.tensor(balanced.class_counts)
    torch.testing.assert_close(drawn, torch.ones(10))
    assert plain.sampling_weights is None
    assert "class_balanced sampling" in balanced.summary()
    assert "sampling" not in plain.summary()


def test_words_and_exponents_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"sampling must be one of .*'class_balanced'"):
        DigitsDataModule(sampling="balanced")
    with pytest.raises(ValueError, match="exponent must be finite, 0 or above, not -1"):
        ClassSampler([0, 1], -1.0, 0)
