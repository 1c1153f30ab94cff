import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler, SequentialSampler

from firstlight.datamodules.loaders import ResidentLoader
from firstlight.datamodules.preprocessing import Preprocessing
from firstlight.datamodules.resident import EvaluationPipeline, ResidentImages, TrainingPipeline
from firstlight.datamodules.samplers import FixedOrderSampler, ShuffledSampler, fixed_order
from firstlight.functional.sharding import example_positions

HOW = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
CPU = torch.device("cpu")


@pytest.fixture
def data():
    """103 images whose pixels all say the example's number."""
    images = torch.arange(103, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return ResidentImages(images, (torch.arange(103) % 4).tolist(), list("abcd"))


def train_loader(data, rank=0, replicas=1, batch_size=10, **arguments):
    pipeline = TrainingPipeline(data.images, HOW, CPU, 2, True, 0.3)
    sampler = ShuffledSampler(data, 5, replicas, rank)
    return ResidentLoader(data, pipeline, sampler, batch_size, seed=5, **arguments)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 150])
def test_ranks_share_the_data_as_torchs_sampler_would(data, replicas):
    theirs = [DistributedSampler(data, replicas, r, shuffle=False) for r in range(replicas)]
    fixed = [FixedOrderSampler(data, replicas, r) for r in range(replicas)]
    assert [list(s) for s in fixed] == [list(s) for s in theirs]
    mixed = [ShuffledSampler(data, 5, replicas, r) for r in range(replicas)]
    assert [len(list(s)) for s in mixed] == [len(s) for s in theirs] == [len(s) for s in mixed]
    seen = torch.cat([torch.tensor(list(s)) for s in mixed]).bincount(minlength=103)
    assert seen.min() >= 1
    repeats = len(theirs[0]) * replicas - 103
    assert seen.sum() - 103 == repeats
    marked = torch.cat([example_positions(s, 0, len(s)) for s in fixed])
    assert sorted(marked[marked >= 0].tolist()) == list(range(103))


def test_fixed_order_is_plainly_sequential_in_one_process(data):
    assert type(fixed_order(data, 1, 0)) is SequentialSampler
    assert isinstance(fixed_order(data, 2, 1), DistributedSampler)


def test_shuffles_are_fair(data):
    """Every example comes first equally often; neighbours in epoch and seed are unrelated."""
    sampler = ShuffledSampler(range(20), 0)
    firsts = np.zeros(20)
    for epoch in range(4000):
        sampler.set_epoch(epoch)
        firsts[next(iter(sampler))] += 1
    assert abs(firsts - 200).max() < 5 * np.sqrt(190)
    other = ShuffledSampler(range(1000), 1)
    one = ShuffledSampler(range(1000), 0)
    one.set_epoch(1)
    assert list(one) != list(other)


def test_batches_hold_the_examples_that_their_targets_say(data):
    pipeline = EvaluationPipeline(data.images, HOW, CPU)
    loader = ResidentLoader(data, pipeline, SequentialSampler(data), 10)
    images = torch.cat([x for x, _ in loader])
    targets = torch.cat([y for _, y in loader])
    numbers = (images[:, 0, 0, 0] * 0.25 + 0.5).mul(255).round().long()
    assert numbers.tolist() == list(range(103))
    assert targets.tolist() == data.targets
    assert len(loader) == 11


def test_training_batches_hold_them_too(data):
    loader = train_loader(data)
    order = list(loader.sampler)
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    # pixels are the example's number, padding (0), or erased (the mean, 127.5)
    numbers = (images * 0.25 + 0.5).mul(255).round()
    for image, number in zip(numbers, order, strict=True):
        assert set(image.unique().tolist()) <= {0.0, 128.0, float(number)}
        assert number in image
    assert targets.tolist() == [data.targets[i] for i in order]


def test_an_incomplete_batch_is_left_out_on_request(data):
    assert [len(y) for _, y in train_loader(data)][-1] == 3
    loader = train_loader(data, drop_last=True)
    assert [len(y) for _, y in loader] == [10] * 10
    assert len(loader) == 10


@pytest.mark.parametrize("stop", [0, 1, 4, 11])
def test_a_loop_of_ones_own_resumes(data, stop):
    whole = train_loader(data)
    whole.sampler.set_epoch(2)
    expected = [x for x, _ in whole]
    killed = train_loader(data)
    killed.sampler.set_epoch(2)
    for number, _ in enumerate(killed, 1):
        if number >= stop:
            break
    state = killed.state_dict() if stop else {"epoch": 2, "batch": 0, "batches": 11}
    resumed = train_loader(data)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = [x for x, _ in resumed]
    assert all(map(torch.equal, rest, expected[stop % 11 :]))
    assert len(rest) == 11 - stop % 11
    assert len(list(resumed)) == 11  # the point of resuming holds once


def test_a_point_of_another_epoch_is_dropped(data):
    loader = train_loader(data)
    loader.load_state_dict({"epoch": 2, "batch": 4, "batches": 11})
    loader.sampler.set_epoch(3)
    assert len(list(loader)) == 11


def test_an_iterator_that_is_made_early_follows_the_epoch(data):
    early, late = train_loader(data), train_loader(data)
    iterator = iter(early)
    early.sampler.set_epoch(1)
    late.sampler.set_epoch(1)
    assert torch.equal(next(iterator)[0], next(iter(late))[0])


def test_resuming_with_other_batches_warns(data):
    with pytest.warns(UserWarning, match="epochs had 11 batches, now they have 6"):
        train_loader(data, batch_size=20).load_state_dict({"epoch": 0, "batch": 4, "batches": 11})


@pytest.fixture
def same():
    """Forty times the same image, no two pixels of which are equal."""
    pixels = torch.randperm(192, generator=torch.Generator().manual_seed(0)).byte() + 1
    return ResidentImages(pixels.view(1, 3, 8, 8).expand(40, -1, -1, -1), [0] * 40, ["a"])


def test_ranks_batches_and_epochs_draw_different_augmentations(same):
    drawn = []
    for rank in (0, 1):
        for epoch in (0, 1):
            loader = train_loader(same, rank, 2)
            loader.sampler.set_epoch(epoch)
            drawn += [x for x, _ in loader]
    assert len(drawn) == 8
    assert len({x.numpy().tobytes() for x in drawn}) == 8


def test_half_of_the_images_are_mirrored_on_request(same):
    def mirrored(flip):
        pipeline = TrainingPipeline(same.images, HOW, CPU, 0, flip, 0.0)
        index = torch.zeros(1000, dtype=torch.int64)
        batch = pipeline(index, torch.Generator().manual_seed(1))
        plain = EvaluationPipeline(same.images, HOW, CPU)(index[:1], torch.Generator())[0]
        isplain, isflip = (batch == plain).all((1, 2, 3)), (batch == plain.flip(-1)).all((1, 2, 3))
        assert (isplain | isflip).all()
        return isflip.sum().item()

    assert mirrored(False) == 0
    assert abs(mirrored(True) - 500) < 5 * 15.8
