"""Metrics over ranks: every example counts once, whatever the sampler repeats."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

SCRIPT = """
import json, sys
import lightning.pytorch as pl
import torch
from firstlight.lightning_modules import ImageClassifier

class Report(pl.Callback):
    def report(self, trainer):
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        path = f"{sys.argv[1]}/rank{trainer.global_rank}.json"
        with open(path, "w") as file:
            json.dump(values, file)

    def on_train_end(self, trainer, pl_module):
        self.report(trainer)

if __name__ == "__main__":
    torch.set_num_threads(1)
    images, targets, logits = torch.load(f"{sys.argv[1]}/data.pt")
    data = torch.utils.data.TensorDataset(images, targets)
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    module = ImageClassifier(
        "test_vit", 4, model_kwargs={"img_size": 32},
        optimizer={"class_path": "SGD", "init_args": {"lr": 0.0}},
    )
    module.load_state_dict(torch.load(f"{sys.argv[1]}/weights.pt"))
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[Report()], num_sanity_val_steps=0, log_every_n_steps=1,
    )
    trainer.fit(module, loader, loader)
"""


@pytest.mark.slow
def test_every_example_counts_once_on_two_ranks(tmp_path):
    from firstlight.lightning_modules import ImageClassifier

    torch.manual_seed(0)
    module = ImageClassifier("test_vit", 4, model_kwargs={"img_size": 32}).eval()
    torch.nn.init.normal_(module.model.head.weight)  # logits that differ
    images, targets = torch.randn(13, 3, 32, 32), torch.randint(3, (13,))
    with torch.no_grad():
        logits = module(images)
    torch.save((images, targets, logits), tmp_path / "data.pt")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "run.py").write_text(SCRIPT)
    subprocess.run([sys.executable, tmp_path / "run.py", tmp_path], check=True, timeout=300)

    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    correct = logits.argmax(1) == targets
    expected = {
        "loss": float(functional.cross_entropy(logits, targets)),
        "top1": float(correct.float().mean()),
        "macro_accuracy": float(
            torch.stack([correct[targets == c].float().mean() for c in targets.unique()]).mean()
        ),
    }
    for stage in ("train", "val"):  # a rate of 0 and no batch norm: both see the same network
        for name, value in expected.items():
            for metrics in ranks:
                assert metrics[f"{stage}/{name}"] == pytest.approx(value, rel=1e-5), (stage, name)
