"""Nothing but `firstlight` lands in site-packages, and all of it does."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = SETUP["packages"]


def folder_of(package):
    mapped = SETUP["package-dir"].get(package)
    return ROOT / (mapped or Path("src", *package.split(".")))


def modules():
    for package in PACKAGES:
        yield package
        path = importlib.import_module(package).__path__
        yield from (f"{package}.{module.name}" for module in pkgutil.iter_modules(path))


def test_packages_on_disk_are_those_of_the_package_list():
    found = {"firstlight"}
    for file in (ROOT / "src").rglob("__init__.py"):
        found.add(".".join(file.parent.relative_to(ROOT / "src").parts))
    for folder in ("callbacks", "datamodules", "lightning_modules", "configs"):
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("firstlight", *file.parent.relative_to(ROOT).parts)))
    assert found == set(PACKAGES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", target, source],
        capture_output=True, check=True,
    )  # fmt: skip
    (file,) = target.glob("*.whl")
    return file


def test_the_wheel_holds_firstlight_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"firstlight"}
    for package in PACKAGES:
        inside = {n for n in names if n.startswith(package.replace(".", "/") + "/")}
        for file in folder_of(package).glob("*.py"):
            assert f"{package.replace('.', '/')}/{file.name}" in inside
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert {f"firstlight/{name}" for name in configs} <= set(names)
    assert {"firstlight/py.typed", "firstlight/report/report.html.jinja"} <= set(names)


def test_the_wheel_works_by_itself(wheel, tmp_path):
    """Unpacked, in a folder of its own, the checkout out of reach."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import firstlight.callbacks, firstlight.cli as cli\n"
        "print(firstlight.callbacks.__file__)\n"
        "print(cli.resolve_config('firstlight:experiment/digits_lt'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    module, config = run.stdout.split()
    assert Path(module) == tmp_path / "site/firstlight/callbacks/__init__.py"
    assert Path(config) == tmp_path / "site/firstlight/configs/experiment/digits_lt.yaml"


@pytest.mark.parametrize("package", [p for p in PACKAGES if p != "firstlight.configs"])
def test_what_is_public_is_listed(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__doc__ or name.isupper() or name == "__version__"


@pytest.mark.parametrize("name", list(modules()))
def test_doctests(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


ARROWS = {
    "functional": {"functional"},
    "runfolder": set(),
    # A figure is drawn when training ends; importing callbacks loads no matplotlib all the same.
    "callbacks": {"callbacks", "functional", "runfolder", "figures"},
    "figures": {"figures", "functional", "runfolder"},
    "lightning_modules": {"lightning_modules", "functional"},
    # What can be made again (an index) is kept by the run folder's way of writing a file whole.
    "datamodules": {"datamodules", "functional", "runfolder"},
}


def imports_of(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("layer", ARROWS)
def test_arrows_point_one_way(layer):
    """Imports inside functions count too."""
    folder = folder_of(f"firstlight.{layer}")
    files = list(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    for file in files:
        names = list(imports_of(file))
        ours = {name.split(".")[1] for name in names if name.startswith("firstlight.")}
        assert ours <= ARROWS[layer], file
        if layer in ("functional", "runfolder"):
            assert not {n.split(".")[0] for n in names} & {"lightning", "pytorch_lightning"}, file


def test_callbacks_do_not_import_one_another():
    folder = folder_of("firstlight.callbacks")
    classes = {}
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text())
        bases = {b.id for n in tree.body if isinstance(n, ast.ClassDef) for b in n.bases
                 if isinstance(b, ast.Name)}  # fmt: skip
        if "Callback" in bases:
            classes[f"firstlight.callbacks.{file.stem}"] = file
    assert classes
    for file in classes.values():
        assert not set(imports_of(file)) & set(classes), file
