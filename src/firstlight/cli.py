"""The command line: LightningCLI with this package's defaults, and commands of its own."""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from firstlight import callbacks, datamodules  # makes their classes known by bare name
from firstlight.callbacks import PerClassMonitor, PredictionWriter
from firstlight.checkpoints import CheckpointError, read_checkpoint
from firstlight.lightning_modules import ImageClassifier
from firstlight.lightning_modules.image_classifier import CHECKPOINT_KEY

COMMANDS = {
    "compare": "firstlight.compare.options",
    "data": "firstlight.data.command",
    "demo": "firstlight.demo",
    "export": "firstlight.export",
    "init": "firstlight.data.init",
    "measure": "firstlight.measure_options",
    "study": "firstlight.study.options",
    "rescore": "firstlight.rescore",
    "report": "firstlight.report.command",
    "table": "firstlight.run_table",
    "retrain-last-layer": "firstlight.last_layer_options:retrain_command_line",
    "correct-prior": "firstlight.last_layer_options:correct_command_line",
}
"""Commands beside Lightning's: the function named, ``command_line``, or that of the command."""

USAGE = """\
[bold]firstlight[/] COMMAND [OPTIONS]; options of a command: firstlight COMMAND --help

  [bold]demo[/]      train on long-tailed digits, print what became of every class (about a minute)
  [bold]init[/]      write a commented YAML file for a folder of images: firstlight init IMAGES
  [bold]fit[/]       train, from YAML files: firstlight fit --config firstlight:experiment/digits_lt
  [bold]validate[/]  evaluate on the validation set
  [bold]test[/]      evaluate on the test set
  [bold]predict[/]   write path, class, probability and top-5 for a folder of images
  [bold]measure[/]   Fisher trace and sharpness at a run's checkpoints, after the run
  [bold]retrain-last-layer[/]  a checkpoint's last layer fitted anew, for the rare classes
  [bold]correct-prior[/]       the prior that it learned taken out of its bias
  [bold]table[/]     methods by data sets over seeds, mean and deviation, from run folders
  [bold]rescore[/]   an ImageNet run's accuracy by the ReaL labels, from its predictions
  [bold]compare[/]   which classes an arm hurts beyond seed noise, from several runs' folders
  [bold]data check[/]   unreadable images, duplicates between train and test, missing classes
  [bold]data show[/]    a picture of augmented training images
  [bold]data pack[/]    image files written as a few large ones, to stream from object storage
  [bold]study[/]     a grid of runs (one factor, its values, seeds) from one file, then compare
  [bold]report[/]    one page about a run, a study or a comparison, with figures; opens from disk
  [bold]export[/]    write a checkpoint's weights as safetensors that timm.create_model loads

--config firstlight:NAME takes a file that ships with the package; they are:
"""

LIGHTNING = ("fit", "validate", "test", "predict")
"""LightningCLI's commands."""

PREPROCESSING = ("img_size", "crop_pct", "interpolation", "mean", "std")


class FinishedFit(Callback):
    """Puts averaged weights in where a checkpoint resumes a fit with nothing left to do.

    Lightning does so when training ends, and such a fit does not start.
    """

    started = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Leave it to Lightning."""
        self.started = True

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Do it before others look at the weights that training ended with."""
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging) and not self.started:
                callback.on_train_end(trainer, pl_module)


class FirstlightCLI(LightningCLI):
    """LightningCLI for `ImageClassifier` and any LightningDataModule."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data follow the backbone's preprocessing; the link is made while parsing."""
        parser.link_arguments("model.model_name", "data.init_args.model_name")

    def before_instantiate_classes(self) -> None:
        """Refuse to go on without data; evaluate on images prepared as in training."""
        command = self.config.subcommand
        if self.config[command].get("data") is None:
            self.parser.error(
                f"'{command}' needs data: pass --data CLASS (or --config with a 'data:' section). "
                f"Choices: {', '.join(n for n in datamodules.__all__ if n.endswith('Module'))}, or "
                "any LightningDataModule by its import path. --data.help CLASS lists its options"
            )
        if command != "fit" and (path := self.config[command].get("ckpt_path")):
            self._prepare_as_trained(self.config[command].data.init_args, path)

    def _prepare_as_trained(self, data: Any, path: str) -> None:
        if not Path(path).is_file():
            return
        trained = _read(path).get(CHECKPOINT_KEY, {}).get("preprocessing", {})
        for key in PREPROCESSING:
            if key in data and data[key] is None and trained.get(key) is not None:
                data[key] = trained[key]

    def before_fit(self) -> None:
        """See `FinishedFit`."""
        callbacks: list[Any] = getattr(self.trainer, "callbacks")  # noqa: B009  # as below
        callbacks.insert(0, FinishedFit())

    def before_test(self) -> None:
        """Show several test sets side by side, in one table instead of Lightning's per loader."""
        if getattr(self.datamodule, "test_sets", None):
            self._have(PerClassMonitor)
            self.config_init["test"]["verbose"] = False

    def before_predict(self) -> None:
        """Write predictions to a file, unless a callback of the user's does so."""
        self._have(PredictionWriter)

    def _have(self, kind: type[Callback]) -> None:
        given: list[Any] = getattr(self.trainer, "callbacks")  # noqa: B009  # set by a connector
        if not any(isinstance(callback, kind) for callback in given):
            given.append(kind())


def config_names() -> list[str]:
    """Names of the YAML files that ship with the package, as ``--config firstlight:NAME`` takes."""
    root = Path(str(files("firstlight.configs")))
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def resolve_config(argument: str) -> str:
    """Turn ``firstlight:NAME``, alone or after ``--config=``, into the file's path.

    Raises:
        SystemExit: where there is no such file, listing those there are.
    """
    before, marker, name = argument.partition("firstlight:")
    if not marker or before not in ("", "--config="):
        return argument
    if name not in config_names():
        sys.exit(f"no config {argument!r}; there are:\n  " + "\n  ".join(config_names()))
    return f"{before}{Path(str(files('firstlight.configs')), name)}.yaml"


def name_model(arguments: list[str]) -> list[str]:
    """Take the model's name from ``--ckpt_path``, so that nobody has to repeat it.

    LightningCLI takes the other hyper-parameters from there by itself, but asks for those without a
    default before it looks.
    """
    if not arguments or arguments[0] not in LIGHTNING[1:]:
        return arguments
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    paths = [value if key == "--ckpt_path" else key.partition("=")[2]
             for key, value in pairs if key.partition("=")[0] == "--ckpt_path"]  # fmt: skip
    if not paths or not Path(paths[-1]).is_file():
        return arguments
    name = _read(paths[-1]).get("hyper_parameters", {}).get("model_name")
    given = [f"--model.model_name={name}"] if name else []
    return [arguments[0], *given, *arguments[1:]]


def _read(checkpoint: str) -> dict[str, Any]:
    try:
        return read_checkpoint(checkpoint)
    except CheckpointError as error:
        sys.exit(str(error))


def run(command: str, arguments: list[str]) -> None:
    """Run one of `COMMANDS`."""
    path, _, function = COMMANDS[command].partition(":")
    module = import_module(path)
    if function:
        getattr(module, function)(arguments)
    elif hasattr(module, "command_line"):
        module.command_line(arguments)
    else:
        auto_cli(getattr(module, command), args=arguments, prog=f"firstlight {command}")


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = name_model([resolve_config(argument) for argument in sys.argv[1:]])
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        try:
            run(command, sys.argv[2:])
        except (OSError, ValueError) as error:  # what users meet; anything else is our fault
            sys.exit(f"firstlight {command}: {error}")
    elif not command.startswith("-") and command not in (*COMMANDS, *LIGHTNING):
        near = get_close_matches(command, (*COMMANDS, *LIGHTNING))
        sys.exit(
            f"no command {command!r}; there are {', '.join((*COMMANDS, *LIGHTNING))}"
            + (f". Did you mean {near[0]!r}?" if near else "")
        )
    elif command in ("-h", "--help"):
        console = Console()
        names = "".join(f"  {name}\n" for name in config_names())
        console.print(USAGE + names, end="", soft_wrap=True, highlight=False)
    else:
        lightning()


def lightning(arguments: list[str] | None = None) -> FirstlightCLI:
    """Run one of `LIGHTNING` with these arguments, by default those of the process."""
    return FirstlightCLI(
        ImageClassifier,
        args=arguments,
        auto_configure_optimizers=False,  # the model takes its optimiser as an argument
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
    )


__all__ = ["FirstlightCLI", "callbacks", "main"]
