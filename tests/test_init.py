import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from firstlight.data.init import init


def write(folder, counts, size=(20, 24)):
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def content(file):
    return yaml.safe_load(file.read_text())


def callbacks(file):
    return [one["class_path"].rpartition(".")[2] for one in content(file)["trainer"]["callbacks"]]


def test_the_file_that_is_written_runs(tmp_path):
    images = write(tmp_path / "my: images", {"ant # one": 30, "bee": 12, "fly": 5})
    target = init(images, tmp_path / "a.yaml", model_name="test_resnet")
    done = subprocess.run(
        [sys.executable, "-c", "from firstlight.cli import main; main()", "fit", "--config",
         str(target), "--model.pretrained", "false", "--data.num_workers", "0",
         "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "`max_steps=1` reached" in done.stderr


def test_what_is_found_decides_the_file(tmp_path):
    skewed = init(write(tmp_path / "skewed", {"ant": 60, "bee": 6}), tmp_path / "s.yaml")
    assert callbacks(skewed) == ["PerClassMonitor", "ModelCheckpoint", "PriorCorrection"]
    assert "11 times the images" in skewed.read_text()  # 54 and 5: a tenth is for testing
    assert "from 54 training images (ant) to 5 (bee)" in skewed.read_text()
    even = init(write(tmp_path / "even", {"ant": 30, "bee": 30}), tmp_path / "e.yaml")
    assert callbacks(even) == ["PerClassMonitor", "ModelCheckpoint"]
    assert "no prior to correct" in even.read_text()
    assert content(even)["trainer"]["max_epochs"] == 50  # 42 images: 2,000 steps are more epochs
    mild = init(write(tmp_path / "mild", {"ant": 60, "bee": 20}), tmp_path / "m.yaml")
    assert callbacks(mild) == ["PerClassMonitor", "ModelCheckpoint"]
    assert "    # - class_path: PriorCorrection" in mild.read_text()
    assert "2 classes, 27 training images each" in even.read_text()
    assert content(even)["trainer"]["callbacks"][1]["init_args"]["monitor"] == "val/macro_accuracy"
    assert "img_size: 40  # faster" in even.read_text()  # 20 x 24 pixels for a network of 224
    single = init(write(tmp_path / "single", {"ant": 9, "bee": 1}), tmp_path / "1.yaml")
    assert "which lacks bee" in single.read_text()
    assert content(single)["trainer"]["callbacks"][2]["init_args"] == {"data": "train"}


def test_the_number_of_epochs_makes_two_thousand_steps(tmp_path):
    images = write(tmp_path / "images", {"ant": 2000, "bee": 2000}, size=(1, 1))
    written = content(init(images, tmp_path / "a.yaml"))
    assert written["data"]["init_args"]["batch_size"] == 64
    # 400 images are for testing, and a tenth of the rest each for selection and the last layer
    assert 44 * 2880 / 64 < 2000 <= 45 * 2880 / 64
    assert written["trainer"]["max_epochs"] == 45
    assert written["model"]["lr_scheduler"]["init_args"]["total"] == 45


def test_unreadable_images_and_what_is_missing_are_foretold(tmp_path):
    images = write(tmp_path / "images/train", {"ant": 20, "bee": 20}).parent
    (images / "train/ant/003.png").write_bytes(b"")
    text = init(images, tmp_path / "a.yaml").read_text()
    assert "# Refused:  `firstlight test`: there is no test set" in text
    assert "003.png (ValueError: it is empty" in text


def test_a_manifest_and_local_weights(tmp_path):
    write(tmp_path / "images", {"ant": 10, "bee": 10})
    rows = [f"images/{c}/{n:03d}.png,{c}" for c in ("ant", "bee") for n in range(10)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    file = init(
        tmp_path / "list.csv", tmp_path / "a.yaml", checkpoint_path=tmp_path / "w.safetensors"
    )
    assert content(file)["data"]["init_args"]["manifest"] == str(tmp_path / "list.csv")
    assert content(file)["model"]["checkpoint_path"] == str(tmp_path / "w.safetensors")
    assert "pretrained" not in content(file)["model"]


def test_wrong_input_leaves_no_file(tmp_path):
    target = tmp_path / "a.yaml"
    with pytest.raises(FileNotFoundError, match="no folder"):
        init(tmp_path / "nothing", target)
    images = write(tmp_path / "images", {"ant": 3})
    with pytest.raises(ValueError, match="resnet5"):
        init(images, target, model_name="resnet5000")
    for file in (images / "ant").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of"):
        init(images, target)
    assert not target.exists()


def test_commands_are_written_for_a_shell(tmp_path):
    target = tmp_path / "my images.yaml"
    init(write(tmp_path / "images", {"ant": 10, "bee": 10}), target)
    assert f"firstlight fit --config '{target}'" in target.read_text()


def test_an_existing_file_is_kept_unless_told(tmp_path):
    images = write(tmp_path / "images", {"ant": 10, "bee": 10})
    target = tmp_path / "a.yaml"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        init(images, target)
    assert target.read_text() == "mine"
    init(images, target, overwrite=True)
    assert content(target)["model"]["model_name"] == "resnet50"
