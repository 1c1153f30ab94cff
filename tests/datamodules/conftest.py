from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_tree(root: Path, counts: dict[str, int], size=(32, 32), suffix="png") -> Path:
    """Write ``counts[name]`` random images per class folder; each has a colour of its class."""
    random = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., label % 3] += 150
            Image.fromarray(pixels).save(root / name / f"{number:03d}.{suffix}")
    return root


@pytest.fixture
def tree():
    return write_tree


@pytest.fixture
def cifar_root(tmp_path):
    write_tree(tmp_path / "cifar/train", {"bird": 40, "cat": 40, "dog": 40})
    write_tree(tmp_path / "cifar/test", {"bird": 6, "cat": 5, "dog": 4})
    return tmp_path / "cifar"


@pytest.fixture
def folder_root(tmp_path):
    write_tree(tmp_path / "folder/train", {"ant": 24, "bee": 12, "fly": 3}, (40, 30), "jpg")
    write_tree(tmp_path / "folder/val", {"ant": 4, "bee": 4, "fly": 4}, (40, 30), "jpg")
    write_tree(tmp_path / "folder/test", {"ant": 3, "bee": 2, "fly": 2}, (30, 40), "jpg")
    return tmp_path / "folder"
