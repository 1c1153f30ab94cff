import pytest
import torch

from firstlight.datamodules.splits import Sources, cut_splits, slice_fractions, take_test


class Numbered:
    """The smallest divisible data set: examples are their own numbers."""

    def __init__(self, targets, classes, numbers=None):
        self.targets, self.classes = list(targets), classes
        self.numbers = list(range(len(self.targets))) if numbers is None else numbers

    def __len__(self):
        return len(self.targets)

    def subset(self, index):
        chosen = index.tolist()
        numbers = [self.numbers[i] for i in chosen]
        return Numbered([self.targets[i] for i in chosen], self.classes, numbers)


def pool(*counts):
    return Numbered(
        [label for label, count in enumerate(counts) for _ in range(count)],
        [f"class{label}" for label in range(len(counts))],
    )


def counts(data, classes):
    return torch.tensor(data.targets, dtype=torch.int64).bincount(minlength=classes).tolist()


def cut(sources, protocol="honest", val=0.1, holdout=0.1, seed=0):
    return cut_splits(sources, protocol, val, holdout, seed, probe_size=5)


def test_slices_have_their_sizes_and_small_classes_give_what_they_can():
    splits = cut(Sources(pool(1000, 30, 10, 3, 2, 1), None, None))
    assert counts(splits.val, 6) == [100, 3, 1, 1, 1, 0]
    assert counts(splits.holdout, 6) == [100, 3, 1, 1, 0, 0]
    assert counts(splits.train, 6) == [800, 24, 8, 1, 1, 1]
    parts = splits.train.numbers + splits.val.numbers + splits.holdout.numbers
    assert sorted(parts) == list(range(1046))
    assert splits.full_class_counts == [1000, 30, 10, 3, 2, 1]


def test_classes_without_an_example_are_named():
    notes = cut(Sources(pool(50, 2, 1), None, None)).notes
    assert notes == [
        "1 classes are too small to give an example to val: class2",
        "2 classes are too small to give an example to holdout: class1, class2",
    ]


def test_a_real_validation_set_is_used_and_none_cut():
    real = pool(4, 4)
    splits = cut(Sources(pool(100, 50), real, None))
    assert splits.val is real
    assert counts(splits.train, 2) == [90, 45]
    assert splits.test is None


def test_legacy_selects_on_the_test_set_or_on_the_only_other_one():
    val, test = pool(3, 3), pool(5, 5)
    assert cut(Sources(pool(9, 9), val, test), "legacy", 0, 0).val is test
    splits = cut(Sources(pool(9, 9), val, None), "legacy", 0, 0)
    assert splits.val is val
    assert splits.holdout is None
    assert counts(splits.train, 2) == [9, 9]


def test_cuts_follow_the_seed_and_the_fingerprint_says_so():
    one, same, other = (cut(Sources(pool(60, 60), None, None), seed=s) for s in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.val.numbers == same.val.numbers != other.val.numbers
    assert one.probe.numbers == same.probe.numbers
    assert set(one.probe.numbers) <= set(one.train.numbers)
    assert len(one.probe) == 5


def test_a_test_set_is_cut_from_data_without_splits():
    train, test = take_test(pool(20, 10), 0.2)
    assert counts(test, 2) == [4, 2]
    assert sorted(train.numbers + test.numbers) == list(range(30))


def test_no_test_set_rather_than_an_empty_one():
    for data, share in ((pool(20, 10), 0.0), (pool(1, 1), 0.5)):
        train, test = take_test(data, share)
        assert test is None
        assert train.numbers == data.numbers


def test_fractions():
    assert slice_fractions("honest", None, None) == (0.1, 0.1)
    assert slice_fractions("legacy", None, None) == (0.0, 0.0)
    assert slice_fractions("legacy", 0.0, 0.2) == (0.0, 0.2)
    with pytest.raises(ValueError, match="would be cut from training for nothing"):
        slice_fractions("legacy", 0.1, None)
