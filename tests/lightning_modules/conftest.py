"""A small labelled problem and a loader that resumes."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


class ResumableBatches:
    """A fixed list of batches that remembers its place, as Lightning asks of a loader."""

    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        start, self.place = self.place % len(self.batches), self.place % len(self.batches)
        for batch in self.batches[start:]:
            self.place += 1
            yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class TinyData(pl.LightningDataModule):
    """Images whose class is the brightest of four quadrants; batches of unequal sizes."""

    class_names = ("north", "east", "south", "west")
    num_classes = CLASSES

    def __init__(self, count: int = 44, batch_size: int = 16) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def examples(self, seed):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(CLASSES, (self.count,), generator=generator)
        images = torch.randn(self.count, 3, 16, 16, generator=generator)
        for image, target in zip(images, targets, strict=True):
            row, column = divmod(int(target), 2)
            image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 2
        return images, targets

    def loader(self, seed):
        return DataLoader(TensorDataset(*self.examples(seed)), batch_size=self.batch_size)

    def train_dataloader(self):
        return ResumableBatches([list(batch) for batch in self.loader(0)])

    def val_dataloader(self):
        return self.loader(1)

    def test_dataloader(self):
        return {"near": self.loader(2), "far": self.loader(3)}

    def predict_dataloader(self):
        return self.loader(2)


@pytest.fixture
def data():
    return TinyData()


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": tmp_path,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
            "max_epochs": 2,
        }
        return pl.Trainer(**(defaults | options))

    return make


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
