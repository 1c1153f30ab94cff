"""``firstlight table``: what run folders hold, as a table of methods by data sets over seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
import yaml

from firstlight.functional import summarise_classes
from firstlight.runfolder import RunFolder, RunFolderError
from firstlight.seed_table import Result, Selection, show_seed_table, write_seed_table
from firstlight.terminal import console

MEASURES = ("micro", "macro", "min", "many", "medium", "few")


def result_of_run(
    run: str | Path,
    method: str | None = None,
    split: str = "test",
    selection: Selection = "unknown",
) -> Result:
    """Read one run's last evaluation of a split.

    Args:
        run: a run folder, or a folder with exactly one below it.
        method: its name; default: the run's ``arm``, or else its recipe's hash.
        split: an evaluation in the table ``per_class``.
        selection: how its weights were chosen, which a run folder does not know; where the run's
            protocol is legacy and the split its test set, "test" stands whatever is said.

    Raises:
        RunFolderError: where there is no run, or several, or no such evaluation.
    """
    folder = run_in(Path(run))
    found = folder.read_last("per_class", split, ["epoch", "class", "n", "correct", "pred_count"])
    counts = found.sort_by("class").to_pydict()
    columns = {name: torch.tensor(counts[name]) for name in ("n", "correct", "pred_count")}
    shots = folder.read("classes").to_pydict()["shot"] or None
    summary = summarise_classes(columns, shots)
    described, file = folder.run, folder.path / "config.yaml"
    config = yaml.safe_load(file.read_text()) if file.exists() else {}
    data = (config.get("data") or {}).get("init_args", {})
    legacy = data.get("protocol") == "legacy"
    built = {k: data[k] for k in ("imbalance_factor", "imbalance_type") if data.get(k) is not None}
    name = str(described["dataset"]).rpartition(".")[2].removesuffix("DataModule")
    return Result(
        method or described["arm"] or str(described["recipe_hash"])[:8],
        " ".join([name, *(str(value) for value in built.values())]),
        "unknown" if described["seed"] is None else described["seed"],
        {measure: summary[measure] for measure in MEASURES},
        split,
        "test" if legacy and split == "test" else selection,
        {"commit": described["commit"], "recipe": str(described["recipe_hash"])[:8],
         "epoch": counts["epoch"][0], "weights": described["weights"],
         "backbone": (config.get("model") or {}).get("init_args", {}).get("model_name")},
    )  # fmt: skip


def run_in(path: Path) -> RunFolder:
    """Open a run folder, or the only one below a path.

    Raises:
        RunFolderError: where there is none, or several.
    """
    if (path / "run.json").exists():
        return RunFolder.open(path)
    found = sorted(file.parent for file in path.rglob("run.json"))
    if len(found) != 1:
        shown = ", ".join(str(one.relative_to(path)) for one in found[:4])
        raise RunFolderError(
            f"{path} is no run folder and has {len(found)} below it"
            + (f" ({shown}{', ...' if len(found) > 4 else ''}): name one" if found else "")
        )
    return RunFolder.open(found[0])


def table(
    runs: Sequence[str],
    output: str | Path = "results.md",
    split: str = "test",
    selection: Selection = "unknown",
    against: str | None = None,
    title: str = "Methods over seeds",
) -> Path:
    """Write a table of run folders and print it; the options are those of the command.

    Args:
        runs: run folders, each as FOLDER or METHOD=FOLDER; several of one method are its seeds.
        output: the Markdown file; all runs stand in a JSON file beside it.
        split: the evaluation that is tabulated.
        selection: how the weights were chosen.
        against: the method that gains are taken from, seed by seed.
        title: of the table.
    """
    results = []
    for one in runs:
        method, marked, folder = one.rpartition("=")
        results.append(result_of_run(folder, method if marked else None, split, selection))
    rows = write_seed_table(output, results, title, against=against)
    console.print(show_seed_table(rows, title)[0])
    console.print(f"Written: {output}, and all runs in .json beside it", soft_wrap=True)
    return Path(output)


def command_line(arguments: Sequence[str]) -> None:
    """Run ``firstlight table`` with these arguments."""
    parser = argparse.ArgumentParser(
        prog="firstlight table",
        description="Methods by data sets over seeds, mean and standard deviation, from run "
        "folders that hold an evaluation.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("runs", nargs="+", help="FOLDER or METHOD=FOLDER; one a seed")
    parser.add_argument("--output", help="Markdown file (default: results.md)")
    parser.add_argument("--split", help="the evaluation (default: test)")
    parser.add_argument("--selection", choices=get_args(Selection), help="of the weights")
    parser.add_argument("--against", metavar="METHOD", help="take gains from it, seed by seed")
    parser.add_argument("--title", help="of the table")
    table(**vars(parser.parse_args(arguments)))
