"""The Fisher trace beside nngeometry, BackPACK and curvlinops, which the extra `bench` installs.

    python benchmarks/fisher_peers.py

timm models on 8 images of 64 px, 10 classes, eval mode, float32. The exact value is the definition,
one autograd pass for every class of every image, in float64. nngeometry: the diagonal of its FIM
(exact over classes); BackPACK: DiagGGNExact through its converter; curvlinops: Hutchinson's
estimate with 10 products of its GGN operator under the only attention kernel that allows them.
Whatever a library raises stands in the table.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from rich.progress import track
from side_by_side import in_turn, publish, ratio, seconds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.append(str(Path(__file__).parents[1] / "tests" / "functional"))
from exact_fisher import exact

from firstlight.functional import fisher_trace

EXAMPLES, CLASSES, ROUNDS = 8, 10, 3
NETWORKS: Mapping[str, dict[str, int]] = {
    "resnet18": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 64},
}


def ours(model: nn.Module, x: Tensor) -> float:
    """The default estimator."""
    return fisher_trace(model, x).value


def ours_exact(model: nn.Module, x: Tensor) -> float:
    """Every class."""
    return fisher_trace(model, x, estimator="exact").value


def nngeometry(model: nn.Module, x: Tensor) -> float:
    """Its exact trace."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    data = torch.utils.data.TensorDataset(x, torch.zeros(len(x)).long())
    loader = torch.utils.data.DataLoader(data, batch_size=len(x))
    return float(FIM(model, loader, PMatDiag, variant="classif_logits").trace())


def backpack(model: nn.Module, x: Tensor) -> float:
    """The trace of its exact GGN diagonal."""
    from backpack import backpack as extension
    from backpack import extend
    from backpack.extensions import DiagGGNExact

    model = extend(copy.deepcopy(model), use_converter=True).eval()
    loss = extend(nn.CrossEntropyLoss())(model(x), torch.zeros(len(x)).long())
    with extension(DiagGGNExact()):
        loss.backward()
    return float(sum(p.diag_ggn_exact.sum() for p in model.parameters()))


def curvlinops(model: nn.Module, x: Tensor) -> float:
    """Hutchinson's estimate."""
    from curvlinops import GGNLinearOperator, hutchinson_trace

    data = [(x, torch.zeros(len(x)).long())]
    with sdpa_kernel(SDPBackend.MATH):
        operator = GGNLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
        )
        return float(hutchinson_trace(operator, num_matvecs=10))


PEERS: dict[str, Callable[[nn.Module, Tensor], float]] = {
    "nngeometry": nngeometry,
    "BackPACK": backpack,
    "curvlinops": curvlinops,
}
DISTRIBUTIONS = {"curvlinops": "curvlinops-for-pytorch", "BackPACK": "backpack-for-pytorch"}


def rows_of(name: str) -> list[dict[str, str]]:
    """All sides on one network."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **NETWORKS[name]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += (0.02 if p.ndim > 1 else 0.1) * torch.randn_like(p)
    x = torch.randn(EXAMPLES, 3, 64, 64)
    want = float(exact(copy.deepcopy(model).double(), x.double()).mean())
    rows = [_row(name, "exact, float64", want, want, "", "")]
    for label, side in (("firstlight", ours), ("firstlight, every class", ours_exact)):
        rows.append(_row(name, label, side(model, x), want, "", "1"))
    for label, side in PEERS.items():
        try:
            value = side(model, x)
        except Exception as error:  # whatever a library raises is its result
            reason = str(error).strip().splitlines()[0][:70] if str(error).strip() else ""
            rows.append(_row(name, label, None, want, f"{type(error).__name__}: {reason}", ""))
            continue
        times = in_turn(
            {
                "peer": lambda side=side: seconds(lambda: side(model, x), 1),
                "ours": lambda: seconds(lambda: ours(model, x), 1),
            },
            ROUNDS,
        )
        rows.append(_row(name, label, value, want, "", ratio(times["peer"], times["ours"])))
    return rows


def _row(
    name: str, label: str, value: float | None, want: float, error: str, time: str
) -> dict[str, str]:
    known = f" {version(DISTRIBUTIONS.get(label, label))}" if label in PEERS else ""
    return {
        "network": name,
        "by": label + known,
        "value": error if value is None else f"{value:.5g}",
        "value / exact": "" if value is None else f"{value / want:.4f}",
        "time / firstlight's": time,
    }


def main() -> None:
    """Publish the table."""
    warnings.filterwarnings("ignore")
    publish(
        "fisher_peers",
        "The Fisher trace by every library that computes it",
        [row for name in track(NETWORKS, "networks") for row in rows_of(name)],
        "firstlight's own row is one draw of the default estimator, whose error the result tells.",
    )


if __name__ == "__main__":
    main()
