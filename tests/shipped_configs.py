"""The configs that ship with the package, by name and kind."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = {p.relative_to(ROOT / "configs").with_suffix("").as_posix(): p
           for p in (ROOT / "configs").rglob("*.yaml")
           if p.parent.name != "study"}  # fmt: skip  # of another command: test_study_file.py
PARTS = ("model", "data", "callbacks", "loss", "lr_scheduler", "control", "experiment", "test_sets")
KINDS = {kind: [n for n in CONFIGS if n.startswith(kind)] for kind in PARTS}
TINY = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
