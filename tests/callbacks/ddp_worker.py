"""Runs on two gloo processes, by torch.distributed.run: every callback in several modules.

Each rank writes what it saw to ``<folder>/rank<r>.pt``; test_ddp.py reads and judges.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import contract_checks as checks
from contract_table import CALLBACKS, MODULES
from torch.utils.data import DataLoader, Subset

MODULES_RUN = (
    "tuple batch",
    "tuple batch, accumulated",
    "dict batch",
    "manual optimisation",
    "text",
    "pytorch_lightning",
)
DDP = {"strategy": "ddp", "devices": 2}


def numbers(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def trained(case, root, callbacks):
    trainer, module = checks.fit(case, root, callbacks, **DDP)
    return {"weights": module.state_dict(), "metrics": numbers(trainer)}


def validated(case, root, callback, loader, **kwargs):
    checks.seed_all(7)
    trainer = case.trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback],
        default_root_dir=root, **kwargs,
    )  # fmt: skip
    trainer.validate(case.build(), loader, verbose=False)
    return numbers(trainer)


def own_share(case, rank):
    """A loader that Lightning leaves alone, with 30 examples on rank 0 and 7 on rank 1."""
    data = case.data()
    shares = [range(30), range(30, len(data))]
    return DataLoader(Subset(data, list(shares[rank])), 8)


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    seen = {}
    for name, callback in CALLBACKS.items():
        for module in MODULES_RUN:
            case, root = MODULES[module], folder / f"{name}-{module}"
            seen[name, module, "fit"] = trained(case, root, [callback.build()])
            seen[name, module, "validate"] = validated(
                case, root / "validate", callback.build(), case.loader(), **DDP
            )
        case = MODULES["tuple batch"]
        seen[name, "uneven"] = validated(
            case, folder / f"{name}-uneven", callback.build(), own_share(case, rank),
            use_distributed_sampler=False, **DDP,
        )  # fmt: skip
    broken = checks.UpdatesFromALocalGradient()
    seen["broken"] = trained(MODULES["tuple batch"], folder / "broken", [broken])
    torch.save(seen, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
