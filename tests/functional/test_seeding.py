import pytest
import torch

from firstlight.functional.seeding import (
    fold_in,
    keyed_generator,
    keyed_randomness,
    resolve_seed,
)


def test_the_seed_of_the_run_is_taken_where_none_is_given(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert resolve_seed(None) == 11
    assert resolve_seed(0) == 0
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert resolve_seed(None) == 0


def test_randomness_inside_is_keyed_and_outside_untouched():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with keyed_randomness(5, 1, 2):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(inside, torch.rand(4, generator=keyed_generator(5, 1, 2)))


def test_it_is_restored_after_an_error():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), keyed_randomness(5):
        torch.rand(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_generator_of_a_gpu_is_keyed_and_restored():
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    drawn = []
    for _ in range(2):
        with keyed_randomness(5, 1, device=device):
            drawn.append(torch.rand(4, device=device))
    assert torch.equal(*drawn)
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_keys_are_told_apart():
    seeds = {fold_in(0), fold_in(0, 0), fold_in(0, 1, 2), fold_in(0, 2, 1), fold_in(1, 0)}
    assert len(seeds) == 5
