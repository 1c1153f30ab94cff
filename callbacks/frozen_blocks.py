"""Blocks of a module, frozen and open: gradients wanted or not, BatchNorm moving or not."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from firstlight.functional.measuring import untouched_batch_norms

BatchNormMode = Literal["auto", "eval", "train", "train_affine"]
MODES: tuple[BatchNormMode, ...] = ("auto", "eval", "train", "train_affine")


class FrozenBlocks:
    """Keeps the blocks that are not open frozen; a function of the open ones, whatever was before.

    Only parameters that require a gradient at first are ever touched: what the user froze stays
    so, and blocks without anything else are left out. A frozen parameter has no gradient (``None``,
    so that no momentum and no weight decay moves it).

    Attributes:
        blocks: names to the parameters handled, from the stem to the head.
        moving: normalisation layers whose statistics move although their block is frozen.

    Args:
        module: the LightningModule.
        blocks: names of blocks to names of parameters.
        batch_norm: layers with running statistics in frozen blocks. ``"eval"``: they normalise by
            their statistics, which stay. ``"train"``: they normalise by the batch, and their
            statistics move. ``"train_affine"``: likewise, and their weights and biases train from
            the start. ``"auto"``: ``"train"`` for layers whose statistics were never updated (they
            would normalise by (0, 1)), ``"eval"`` for others.
        moving: as a checkpoint kept them; None to find out now.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Mapping[str, Sequence[str]],
        batch_norm: BatchNormMode,
        moving: Collection[str] | None = None,
    ) -> None:
        parameters = dict(module.named_parameters())
        self.blocks: dict[str, list[Tensor]] = {}
        for block, names in blocks.items():
            wanted: list[Tensor] = [parameters[n] for n in names if parameters[n].requires_grad]
            if wanted:
                self.blocks[block] = wanted
        owners = {name: block for block, names in blocks.items() for name in names}
        parts = [(name, part) for name, part in module.named_modules() if keeps_statistics(part)]
        placed = [(name, part, _block_of(name, owners)) for name, part in parts]
        self._norms = [(n, part, block) for n, part, block in placed if block in self.blocks]
        affine = [p for _, part, _ in self._norms for p in part.parameters(recurse=False)]
        self._always_open = set(affine) if batch_norm == "train_affine" else set()
        if moving is None:
            fresh = {"auto": set(untouched_batch_norms(module)), "eval": set()}
            every = {name for name, _, _ in self._norms}
            moving = every & fresh.get(batch_norm, every)
        self.moving = sorted(moving)
        self._module = module
        self._held: set[nn.Module] = set()

    def apply(self, open_blocks: Collection[str]) -> bool:
        """Open these blocks and freeze the others; say whether any parameter changed."""
        changed = False
        for block, held in self.blocks.items():
            for p in held:
                wanted = block in open_blocks or p in self._always_open
                changed |= p.requires_grad != wanted
                p.requires_grad_(wanted)
                if not wanted:
                    p.grad = None
        self.keep_modes(open_blocks)
        return changed

    def keep_modes(self, open_blocks: Collection[str]) -> None:
        """Put layers with statistics that must stay into eval mode, others back out of it."""
        for name, part, block in self._norms:
            if block not in open_blocks and name not in self.moving:
                if part.training:
                    self._held.add(part)
                    part.training = False
            elif part in self._held:
                self._held.remove(part)
                part.training = True

    def release(self) -> None:
        """Leave gradients wanted and modes as they were found."""
        for held in self.blocks.values():
            for p in held:
                p.requires_grad_(True)
        for part in self._held:
            part.training = self._module.training
        self._held = set()

    def trainable(self) -> int:
        """How many numbers of the whole module require a gradient now."""
        return sum(p.numel() for p in self._module.parameters() if p.requires_grad)

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers of each block are trained once it is open."""
        return {block: sum(p.numel() for p in held) for block, held in self.blocks.items()}


def keeps_statistics(part: nn.Module) -> bool:
    """Say whether a layer updates buffers in its own forward pass, in training mode.

    BatchNorm and InstanceNorm with running statistics of torch and timm, layers with a buffer
    ``running_...`` of others, and spectral norms. No other kind: in eval mode some layers do more
    than keep their buffers, timm's LeViT keeps attention biases for instance.
    """
    own = [name for name, buffer in part._buffers.items() if buffer is not None]
    if isinstance(part, _NormBase | _BatchNorm):
        return part.running_mean is not None
    return type(part).__name__ == "_SpectralNorm" or any(n.startswith("running_") for n in own)


def _block_of(path: str, owners: Mapping[str, str]) -> str:
    """The block of a layer: of its own parameters, else of its nearest neighbours'; "" for none."""
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        prefix = ".".join(parts[:depth]) + "."
        for name, block in owners.items():
            if name.startswith(prefix):
                return block
    return ""
