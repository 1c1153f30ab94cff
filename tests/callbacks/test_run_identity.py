"""What tells one recipe from another, and does not tell runs of one recipe apart."""

import lightning.pytorch as L
import pytest

from firstlight.callbacks.run_identity import describe_run, identify_run


class Configured(L.LightningModule):
    def __init__(self, **values):
        super().__init__()
        self.save_hyperparameters(values)


def recipe(trainer, **values):
    module = Configured(**values)
    return identify_run(trainer, module, describe_run(trainer, module))["recipe_hash"]


@pytest.mark.parametrize("make", [lambda: lambda x: x, object], ids=["function", "object"])
def test_runs_of_one_recipe_have_one_hash(make, tmp_path):
    """A function or an object among the hyper-parameters lies elsewhere in every process."""
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    kept = [make(), make()]  # at once, or both may have one address
    first, second = (recipe(trainer, lr=0.1, of=[one], seed=n) for n, one in enumerate(kept))
    assert first == second
    assert recipe(trainer, lr=0.2, of=[kept[0]], seed=0) != first
