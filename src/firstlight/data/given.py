"""The data a command is about: a folder, a manifest, or any DataModule, as ``fit`` takes it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from firstlight.datamodules import ImageDataModule, ImageFolderDataModule

MANIFESTS = (".csv", ".parquet")


def kind_of(source: str | Path) -> str:
    """Return the argument of `ImageFolderDataModule` that a path is: ``manifest`` or ``root``."""
    return "manifest" if Path(source).suffix.lower() in MANIFESTS else "root"


def images_at(source: str | Path, **options: Any) -> ImageFolderDataModule:
    """Return the DataModule of a folder or manifest, whose files ``setup`` does not verify."""
    root, manifest = (str(source) if kind_of(source) == k else None for k in ("root", "manifest"))
    return ImageFolderDataModule(root, manifest, verify=False, **options)


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add ``SOURCE``, ``--data`` and its options to a parser whose arguments `spelt_out` makes."""
    parser.add_argument(
        "source",
        nargs="?",
        help="a folder of images by class, or a manifest (.csv, .parquet); in place of --data",
    )
    parser.add_subclass_arguments(LightningDataModule, "data", required=False, help="a DataModule")


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """Put in place of ``--config FILE`` the data that the file names, for `add_data_arguments`.

    The files are those of ``fit``: a later one adds to earlier ones, and the backbone's name goes
    to the DataModule, whose preprocessing follows it.

    Raises:
        ValueError: for a file that is no YAML mapping.
        OSError: for one that cannot be read.
    """
    section: dict[str, Any] = {}
    rest, backbone = [], None
    tokens = iter(arguments)
    for token in tokens:
        option, _, value = token.partition("=")
        if option == "--config":
            path = value or next(tokens, "")
            content = _mapping(Path(path))
            section = _merged(section, _named(content.get("data"), Path(path)))
            backbone = (content.get("model") or {}).get("model_name", backbone)
        elif option == "--model.model_name":
            backbone = value or next(tokens, None)
        else:
            rest.append(token)
    if backbone is not None and (section or any(token.startswith("--data") for token in rest)):
        section.setdefault("init_args", {}).setdefault("model_name", backbone)
    section = {name: value for name, value in section.items() if value}
    return [*([f"--data={json.dumps(section)}"] if section else []), *rest]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of options, as the files of --config are")
    return content


def _named(data: Any, path: Path) -> dict[str, Any]:
    """The section of data, in which the class alone may stand."""
    section = {"class_path": data} if isinstance(data, str) else data or {}
    if not isinstance(section, dict) or not isinstance(section.get("init_args") or {}, dict):
        raise ValueError(f"{path}: 'data:' is a class_path with init_args, not {data!r}")
    return {**section, "init_args": section.get("init_args") or {}}


def _merged(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """What LightningCLI makes of two files: a later value wins, arguments of one class add up."""
    arguments = {**before.get("init_args", {}), **later.get("init_args", {})}
    return {**before, **later, "init_args": arguments}


def given_data(options: Any, parser: ArgumentParser) -> "ImageDataModule[Any]":
    """Return the DataModule that parsed options name, not yet set up.

    Files are not verified in its ``setup``, where one unreadable image would end the command.

    Raises:
        ValueError: where none, two, or another kind of DataModule is named.
    """
    source, named = options.pop("source", None), options.get("data")
    if (source is None) == (named is None):
        raise ValueError(
            "name the data once: a folder or manifest, or --data CLASS with --data.OPTION, or "
            "--config with a 'data:' section"
        )
    if source is not None:
        return images_at(source)
    if "verify" in named.get("init_args", {}):
        named.init_args.verify = False
    data = parser.instantiate(options).data
    if not isinstance(data, ImageDataModule):
        raise ValueError(
            f"{type(data).__name__} is not one of firstlight's DataModules, whose files and splits "
            "are known; give the folder, or a manifest of its images"
        )
    return data
