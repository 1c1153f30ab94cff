"""The blocks of timm's models: the smallest model of every model file, and are they in order?

    python benchmarks/block_families.py [NAME ...]
    python benchmarks/block_families.py --choose    # weigh all of timm's models again, minutes

Nothing has values: all is on the meta device. The order of blocks is compared with the order in
which a forward pass first uses the parameters, watched below the modules.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich.progress import track
from side_by_side import publish
from timm.models._registry import _deprecated_models, _module_to_models
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from firstlight.functional import parameter_blocks

FAMILIES = {
    "beit": "beit_base_patch16_224", "byoanet": "halonet_h1", "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224", "coat": "coat_tiny", "convit": "convit_tiny",
    "convmixer": "convmixer_768_32", "convnext": "test_convnext", "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240", "csatv2": "csatv2", "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny", "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224", "densenet": "densenet121", "dla": "dla46x_c", "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small", "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0", "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1", "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0", "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0", "fastvit": "fastvit_t8", "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny", "gemma4_vit": "gemma4_vit_167m", "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b", "hgnet": "hgnetv2_b0", "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny", "hrnet": "hrnet_w18_small", "iformer": "iformer_t",
    "inception_next": "inception_next_atto", "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3", "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s", "lowformer": "lowformer_b0", "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet", "metaformer": "poolformerv2_s12", "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050", "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs", "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap", "nasnet": "nasnetalarge",
    "nest": "nest_tiny", "nextvit": "nextvit_small", "nfnet": "test_nfnet", "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large", "pvt_v2": "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny", "regnet": "regnetx_002", "repghost": "repghostnet_050",
    "repvit": "repvit_m1", "res2net": "res2next50", "resnest": "resnest14d",
    "resnet": "test_resnet", "resnetv2": "resnetv2_18", "rexnet": "rexnet_100",
    "selecsls": "selecsls42", "senet": "legacy_seresnet18", "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1", "sknet": "skresnet18", "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs", "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224", "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224", "tresnet": "tresnet_m", "twins": "twins_svt_small",
    "vgg": "vgg11", "visformer": "visformer_tiny", "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224", "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224", "vovnet": "ese_vovnet19b_slim_dw", "xcit": "xcit_nano_12_p8_224",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
}  # fmt: skip
"""Files of timm's models to the model with the fewest parameters."""

_LATE = "in the stem with the other embeddings, though it joins after some blocks"
EXCEPTIONS = {
    "cait": {"cls_token": _LATE},
    "convit": {"cls_token": _LATE},
    "xcit": {"cls_token": _LATE},
    "volo": {
        "cls_token": _LATE,
        "pos_embed": _LATE,
        "aux_head": "in the top block: get_classifier() leaves this second classifier out",
    },
    "efficientvim": {r"norm\.\d": "in the top block: norms of each stage's output feed the head"},
}
"""By file, parameters that are first used at another time than their block, and where they lie."""


def smallest(file: str) -> str:
    """Return the model of a file with the fewest parameters."""
    names = sorted(_module_to_models[file] - set(_deprecated_models))
    return min((sum(p.numel() for p in on_meta(name).parameters()), name) for name in names)[1]


def families() -> dict[str, str]:
    """Return a small model for every file of the timm that is installed."""
    return {
        file: FAMILIES[file] if FAMILIES.get(file) in _module_to_models[file] else smallest(file)
        for file in sorted(_module_to_models)
    }


def on_meta(name: str) -> nn.Module:
    """Return a model without values."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=10)
    return model


class FirstUses(TorchDispatchMode):
    """Counts operations, and remembers the first that each parameter entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.first: dict[str, int] = {}
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        self.count += 1
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.names:
                self.first.setdefault(self.names[id(value)], self.count)
        return func(*args, **(kwargs or {}))


def first_uses(model: nn.Module) -> dict[str, int]:
    """Return for each parameter the number of the operation of a forward pass that it enters."""
    size = model.default_cfg["input_size"]
    with FirstUses(model) as uses, torch.no_grad():
        model.eval()(torch.empty(1, *size, device="meta"))
    return uses.first


def out_of_order(
    model: nn.Module,
    blocks: dict[str, list[str]],
    uses: dict[str, int],
    excepted: Iterable[str] = (),
) -> list[str]:
    """Return parameters that are used before all of an earlier block are, or not at all.

    Tied ones are left out, as they run wherever any of their owners does; so are those whose names
    begin with an excepted pattern.
    """
    several: dict[int, int] = {}
    for _, p in model.named_parameters(remove_duplicate=False):
        several[id(p)] = several.get(id(p), 0) + 1
    tied = {name for name, p in model.named_parameters() if several[id(p)] > 1}
    wrong, latest = [], 0
    for names in blocks.values():
        judged = [name for name in names if name not in tied | set(_matched(names, excepted))]
        wrong += [name for name in judged if uses.get(name, 0) <= latest]
        latest = max([latest, *(uses.get(name, 0) for name in judged)])
    return wrong


def _matched(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(re.match(pattern, name) for pattern in patterns)]


@dataclass(frozen=True)
class Split:
    """What came out for one model.

    Attributes:
        file: of timm's models.
        model: its name in timm.
        coarse: names of the blocks.
        fine: likewise.
        wrong: parameters out of order, in either.
        excepted: patterns of parameters not judged, by `EXCEPTIONS`.
    """

    file: str
    model: str
    coarse: list[str]
    fine: list[str]
    wrong: list[str]
    excepted: list[str]


def split(file: str, name: str) -> Split:
    """Split one model both ways."""
    model = on_meta(name)
    uses = first_uses(model)
    coarse, fine = (parameter_blocks(model, coarse=mode) for mode in (True, False))
    excepted = list(EXCEPTIONS.get(file, ()))
    wrong = [n for each in (coarse, fine) for n in out_of_order(model, each, uses, excepted)]
    return Split(file, name, list(coarse), list(fine), wrong, excepted)


def rows(splits: list[Split]) -> Iterator[dict[str, str]]:
    """Return the table."""
    for one in splits:
        apart = f", but {', '.join(one.excepted)}" if one.excepted else ""
        yield {
            "file": one.file,
            "model": one.model,
            "coarse": str(len(one.coarse)),
            "fine": str(len(one.fine)),
            "first and last coarse blocks": ", ".join([*one.coarse[:3], "...", *one.coarse[-2:]]),
            "order checked": f"NO: {', '.join(one.wrong[:3])}" if one.wrong else f"yes{apart}",
        }


def main() -> None:
    """Split all models, or those named, and publish the table."""
    if sys.argv[1:] == ["--choose"]:
        for file in track(sorted(_module_to_models), "timm's models"):
            print(f'    "{file}": "{smallest(file)}",')
        return
    files = {name: file for file, names in _module_to_models.items() for name in names}
    chosen = {files[name]: name for name in sys.argv[1:]} or families()
    splits = [split(*item) for item in track(chosen.items(), "timm's models")]
    publish(
        "block_families",
        f"Blocks of {len(splits)} timm models, {sum(not one.wrong for one in splits)} in the order "
        "of use",
        list(rows(splits)),
        "Each block's parameters are first used after all of the block before, coarse and fine. "
        "Not judged: tied parameters; "
        + "; ".join(
            f"{file}'s `{pattern}`, {reason}"
            for file, patterns in EXCEPTIONS.items()
            for pattern, reason in patterns.items()
        )
        + ".",
    )


if __name__ == "__main__":
    main()
