"""Is the Fisher trace right on timm's models? One small model of every model file, in float64.

    python benchmarks/fisher_families.py [NAME ...]

``fisher_trace(estimator="exact")`` against its definition: the gradient of every class's
log-likelihood of every example, one autograd pass each. The weights are timm's initial ones, moved
at random, because many start at zero and would hide what stands behind them.
"""

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from rich.progress import track
from side_by_side import RESULTS, publish
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "tests" / "functional"))
from exact_fisher import exact_by_parameter

from firstlight.functional import fisher_trace

EXAMPLES, CLASSES = 4, 3
SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 331)
NAMED = (
    "resnet18", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto",
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224",
    "mixer_s32_224", "regnetx_002",
)  # fmt: skip
FAMILIES = (
    "eca_halonext26ts", "test_byobnet", "cait_xxs24_224", "coat_tiny",
    "convit_tiny", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2",
    "cs3darknet_focus_s", "cspnext_tiny", "densenet121", "dla34", "dpn68",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet",
    "efficientvim_m1_dist", "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0", "fastvit_s12", "gcvit_xxtiny", "ghostnet_050",
    "hardcorenas_b", "hgnetv2_b0", "hrnet_w18_small", "iformer_t",
    "inception_next_atto",
    "lcnetv2_small", "levit_128s", "lowformer_b0", "test_mambaout", "test_coatnet",
    "gmlp_ti16_224", "mobilevit_xxs", "nest_tiny",
    "test_nfnet", "pit_ti_224", "pvt_v2_b0", "repghostnet_050",
    "repvit_m1", "resnest14d", "test_resnet", "rexnet_100",
    "legacy_seresnet18", "shvit_s1", "skresnet18",
    "starnet_s050", "swiftformer_xs",
    "tiny_vit_5m_224",
    "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "ese_vovnet19b_slim_dw",
    "xcit_nano_12_p8_224",
)  # fmt: skip
"""The smallest of each file of timm's models, as far as five examples take seconds."""


@dataclass(frozen=True)
class Checked:
    """What came out for one model.

    Attributes:
        model: its name in timm.
        size: of the images.
        parameters: numbers in all of them.
        error: of the total, relative.
        worst: the largest error of one parameter, relative to the total.
        fast: share of the numbers that went by the fast path.
        slow: names of the operations or reasons that did not.
    """

    model: str
    size: int
    parameters: int
    error: float
    worst: float
    fast: float
    slow: str


def build(name: str) -> tuple[nn.Module, int]:
    """Return a model on the smallest images it takes, and their size."""
    for size in SIZES:
        for settings in ({"img_size": size}, {}):
            torch.manual_seed(0)
            try:
                model = timm.create_model(name, num_classes=CLASSES, **settings).eval()
                with torch.no_grad():
                    model(torch.zeros(1, 3, size, size))
            except (TypeError, ValueError, RuntimeError, AssertionError):
                continue
            return _tempered(_moved(model).double(), size), size
    raise ValueError(f"{name} takes images of none of the sizes {SIZES}")


class Tempered(nn.Module):
    """A network whose logits are divided by a number: one that is certain has no trace at all."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.network(x) / self.temperature


@torch.no_grad()
def _tempered(model: nn.Module, size: int) -> nn.Module:
    spread = float(model(torch.randn(2, 3, size, size).double()).std())
    return Tempered(model, spread) if spread > 5 else model


@torch.no_grad()
def _moved(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        spread = 0.1 * float(parameter.std()) if parameter.ndim > 1 else 0.0
        parameter += (spread or (0.02 if parameter.ndim > 1 else 0.2)) * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def check(name: str) -> Checked:
    """Compare one model's exact Fisher trace with the definition."""
    model, size = build(name)
    inputs = torch.randn(EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(1))
    inputs = inputs.double()
    # Some models keep attention biases from a call before: train mode is timm's way to drop them.
    want = exact_by_parameter(model.train().eval(), inputs)
    result = fisher_trace(model, inputs, estimator="exact", blocks={n: [n] for n in want})
    total = float(sum(value.mean() for value in want.values()))
    worst = max(abs(result.blocks[n] - float(v.mean())) for n, v in want.items())
    reasons = {why.partition(" is differentiated")[0] for why in result.slow.values()}
    return Checked(
        name,
        size,
        result.num_parameters,
        abs(result.value / total - 1),
        worst / total,
        1 - result.slow_parameters / result.num_parameters,
        ", ".join(sorted(reasons)) or "-",
    )


def checked(names: tuple[str, ...]) -> Iterator[Checked]:
    """Check models one by one; what is done is kept, so that a stopped run goes on."""
    kept = RESULTS / "fisher_families.partial.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {row["model"]: Checked(**row) for row in map(json.loads, lines)}
    for name in track(names, "timm's models"):
        if name not in done:
            done[name] = check(name)
            with kept.open("a") as file:
                file.write(json.dumps(asdict(done[name])) + "\n")
            gc.collect()
        yield done[name]
    kept.unlink()


def main() -> None:
    """Check all models, or those named, and publish the table."""
    names = tuple(sys.argv[1:]) or (*NAMED, *FAMILIES)
    rows = list(checked(names))
    publish(
        "fisher_families",
        f"Exact Fisher trace of {len(rows)} timm models in float64: largest relative error "
        f"{max(row.error for row in rows):.1e}",
        [
            {
                "model": row.model,
                "px": str(row.size),
                "parameters": f"{row.parameters:,}",
                "error of the total": f"{row.error:.1e}",
                "worst parameter": f"{row.worst:.1e}",
                "fast path": f"{100 * row.fast:.2f} %",
                "slow path": row.slow,
            }
            for row in rows
        ],
        "Errors are relative to the exact total. The slow path is autograd, one example at a time.",
    )


if __name__ == "__main__":
    main()
