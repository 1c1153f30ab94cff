import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from firstlight.data.check import data_check
from firstlight.data.command import command_line, data_show
from firstlight.data.findings import Example, findings
from firstlight.data.given import spelt_out
from firstlight.datamodules import DigitsDataModule, ImageFolderDataModule
from firstlight.datamodules.examination import ImageFacts
from firstlight.figures.training_images import training_images_figure


@pytest.fixture
def tree(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("ant", "bee"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(
                    tmp_path / "images" / part / name / f"{part}{number}.png"
                )
    return tmp_path / "images"


def check(tree, tmp_path, **options):
    data = ImageFolderDataModule(
        str(tree), img_size=32, val=0.0, holdout=0.0, verify=False, **options
    )
    return {f.title: f for f in data_check(data, tmp_path / "report")}


def titled(found, words):
    matching = [finding for title, finding in found.items() if words in title]
    assert len(matching) == 1, list(found)
    return matching[0]


def test_a_clean_tree_has_no_finding(tree, tmp_path):
    assert check(tree, tmp_path) == {}
    assert "Nothing was found." in (tmp_path / "report/report.md").read_text()


def test_each_thing_planted_is_found_at_its_place_and_nothing_else(tree, tmp_path):
    train = tree / "train"
    shutil.copy(tree / "test/bee/test0.png", train / "bee/copied.png")  # leaks into training
    with Image.open(train / "ant/train0.png") as picture:
        picture.save(train / "bee/again.bmp")  # another label and format
    shutil.copy(train / "ant/train1.png", train / "ant/twice.png")
    (train / "ant/train2.png").write_bytes(b"")
    Image.new("L", (30, 200)).save(train / "ant/long.png")
    (train / "bee/train3.png").rename(train / "bee/train3.JPEG")
    found = check(tree, tmp_path)
    leak = titled(found, "in another part")
    assert leak.severity == "error" and len(leak.places) == 1
    assert "copied.png (train, bee)" in leak.places[0]
    assert "test0.png (test, bee)" in leak.places[0]
    assert "again.bmp" in titled(found, "two labels").places[0]
    more = titled(found, "more than once")
    assert sorted("twice.png" in place for place in more.places) == [False, True]
    unreadable = titled(found, "unreadable")
    assert unreadable.severity == "error" and "train2.png" in unreadable.places[0]
    assert "30 x 200" in titled(found, "as long as wide").places[0]
    assert "train3.JPEG: PNG" in titled(found, "suffix").places[0]
    assert "long.png: L" in titled(found, "not RGB").places[0]
    assert len(titled(found, "enlarged").places) == 1
    assert len(found) == 8
    rows = pq.read_table(tmp_path / "report/files.parquet").to_pylist()
    assert len(rows) == 12 + 3 + 1 + 6
    assert {row["part"] for row in rows} == {"train", "test"}
    assert "copied.png" in (tmp_path / "report/report.md").read_text()


def test_a_class_without_images_in_a_part_is_named():
    examples = [Example("train", 0, ImageFacts("a", pixels="1", width=9, height=9))]
    found = findings(examples, ["train", "val"], ["x", "y"], 8)
    assert [(f.severity, str(f), f.places) for f in found] == [
        ("error", "1 class without an image in train", ["y"]),
        ("warning", "2 classes without an image in val", ["x", "y"]),
    ]


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [(99, 300, "enlarged"), (100, 400, None), (100, 401, "as long as wide"),
     (7_000, 7_143, "50 million"), (7_000, 7_142, None)],
)  # fmt: skip
def test_sizes_are_remarked_on_from_their_bounds_on(width, height, words):
    facts = ImageFacts("a.png", format="PNG", mode="RGB", width=width, height=height, pixels="1")
    found = findings([Example("train", 0, facts)], ["train"], ["x"], 100)
    assert [words in f.title for f in found] == ([] if words is None else [True])


def test_images_in_memory_are_checked_too(tmp_path):
    found = data_check(DigitsDataModule(), tmp_path / "report")
    assert found == []  # scikit-learn's digits: no two are equal
    rows = pq.read_table(tmp_path / "report/files.parquet").num_rows
    assert rows == 1797


def test_the_figure_undoes_the_normalisation(tmp_path):
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    drawn = []
    from matplotlib.axes import Axes

    def look(self, image, *args, original=Axes.imshow, **kwargs):
        drawn.append(torch.from_numpy(image))
        return original(self, image, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "imshow", look)
        mixed = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])
        file = training_images_figure(
            images, mixed, ["ant", "bee", "fly"], mean, std, tmp_path / "a.png"
        )
    for shown, original in zip(drawn, pixels, strict=True):
        torch.testing.assert_close(shown, original.permute(1, 2, 0), atol=1e-6, rtol=0)
    svg = file.with_suffix(".svg").read_text()
    assert "ant 75 %" in svg and "bee 25 %" in svg and "fly 100 %" in svg


def test_show_writes_what_training_would_see(tree, tmp_path):
    data = ImageFolderDataModule(str(tree), img_size=32, batch_size=5, num_workers=0)
    file = data_show(data, tmp_path / "grid.png", count=7)
    with Image.open(file) as picture:
        assert picture.width > 500
    assert "7 training images" in file.with_suffix(".svg").read_text()
    with pytest.raises(ValueError, match="at least 1"):
        data_show(data, tmp_path / "grid.png", count=0)


def test_configs_add_up_and_the_backbone_reaches_the_data(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model: {model_name: resnet18}\n"
        "data: {class_path: DigitsDataModule, init_args: {batch_size: 4, val: 0.2}}\n"
    )
    (tmp_path / "b.yaml").write_text(
        "data: {init_args: {batch_size: 8}}\ntrainer: {max_epochs: 1}\n"
    )
    data, *rest = spelt_out(
        ["--config", f"{tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml", "--data.seed", "3"]
    )
    assert json.loads(data.removeprefix("--data=")) == {
        "class_path": "DigitsDataModule",
        "init_args": {"batch_size": 8, "val": 0.2, "model_name": "resnet18"},
    }
    assert rest == ["--data.seed", "3"]


def test_a_config_names_the_class_alone_or_without_arguments(tmp_path):
    file = tmp_path / "a.yaml"
    for text in ("data: DigitsDataModule", "data: {class_path: DigitsDataModule, init_args: }"):
        file.write_text(text)
        assert spelt_out(["--config", str(file)]) == ['--data={"class_path": "DigitsDataModule"}']
    file.write_text("data:\n")
    assert spelt_out(["--config", str(file)]) == []
    for text in ("data: [1]", "data: {class_path: DigitsDataModule, init_args: [1]}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml: 'data:' is a class_path with init_args"):
            spelt_out(["--config", str(file)])


def test_a_class_called_like_markup_is_printed(tree, tmp_path, capsys):
    (tree / "train/ant").rename(tree / "train/[bold]")
    (tree / "test/ant").rename(tree / "test/[bold]")
    check(tree, tmp_path)
    assert "[bold]  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage"),
        (["chekc"], "no 'chekc'"),
        (["check"], "name the data once"),
        (["check", "x", "--data", "DigitsDataModule"], "name the data once"),
        (["show", "/no/such/folder"], "no folder /no/such/folder"),
        (["show", "--config", "/no/such.yaml"], "No such file"),
    ],
)
def test_wrong_input_is_refused_in_words(arguments, said):
    with pytest.raises((SystemExit, ValueError, OSError)) as raised:
        command_line(arguments)
    assert said in str(raised.value)


def test_from_a_shell_errors_end_with_1_and_clean_data_with_0(tree, tmp_path):
    def run():
        return subprocess.run(
            [sys.executable, "-c", "from firstlight.cli import main; main()", "data", "check",
             str(tree), "--output", str(tmp_path / "out")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    clean = run()
    assert clean.returncode == 0, clean.stderr
    (tree / "train/ant/train0.png").write_bytes(b"no image")
    spoilt = run()
    assert spoilt.returncode == 1
    assert "train0.png" in spoilt.stdout and "1 kind(s) of error" in spoilt.stderr
