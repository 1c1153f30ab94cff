"""What a Fisher trace costs: against a training step, and against per-example gradients by hand.

    python benchmarks/fisher_cost.py [--device cuda] [--rounds 5] [NAME ...]

One measurement of a batch (importance-sampled labels, the network's plan already checked) against
a plain training forward and backward pass on the same examples at 224 px, in turn; and against
``vmap(grad)`` at the best of several chunk sizes and a loop over single examples, which compute the
same squared norms with labels drawn from the model. On a CPU one thread's processor time, which
other work on the machine changes little. Peak memory: what a process of its own grows by (Linux),
or torch's allocator on a GPU.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from rich.progress import track
from side_by_side import in_turn, publish, ratio, seconds
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from firstlight.functional import fisher_trace

BATCHES = {"resnet18": 32, "resnet50": 16, "vit_tiny_patch16_224": 32, "convnext_atto": 32,
           "vit_small_patch16_224": 32}  # fmt: skip
CHUNKS = (2, 8)


class Sides:
    """A network on one batch, and the ways to spend time on it."""

    def __init__(self, name: str, device: str) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).to(device)
        count = BATCHES.get(name, 32)
        self.inputs = torch.randn(count, 3, 224, 224, device=device)
        self.targets = torch.randint(0, 10, (count,), device=device)

    def train(self) -> None:
        """A training step's forward and backward pass."""
        self.model.train()
        self.model.zero_grad()
        F.cross_entropy(self.model(self.inputs), self.targets).backward()
        _wait(self.inputs)

    def ours(self) -> None:
        """One measurement."""
        fisher_trace(self.model, self.inputs, batch_size=len(self.inputs))
        _wait(self.inputs)

    def loop(self) -> None:
        """Squared norms by one pass an example."""
        self.model.eval()
        parameters = list(self.model.parameters())
        for i in range(len(self.inputs)):
            loss = _sampled_loss(self.model(self.inputs[i : i + 1]))
            gradients = torch.autograd.grad(loss, parameters)
            torch.stack([g.square().sum() for g in gradients]).sum().item()

    def vmapped(self, chunk: int) -> None:
        """Squared norms by torch.func."""
        self.model.eval()
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        with torch.no_grad():
            labels = self.model(self.inputs).softmax(1).multinomial(1).squeeze(1)

        def norm(x: Tensor, y: Tensor) -> Tensor:
            def loss(p: dict[str, Tensor]) -> Tensor:
                logits = functional_call(self.model, p, (x.unsqueeze(0),))
                return F.cross_entropy(logits, y.unsqueeze(0))

            return torch.stack([g.square().sum() for g in grad(loss)(weights).values()]).sum()

        with sdpa_kernel(SDPBackend.MATH):
            vmap(norm, chunk_size=chunk)(self.inputs, labels).sum().item()


def _sampled_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.detach().softmax(1).multinomial(1).squeeze(1))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def memory_of(name: str, side: str, device: str) -> float:
    """Peak MiB of one side above the model's and the data's, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r}); import fisher_cost as f;"
        f"print(f.peak({name!r}, {side!r}, {device!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def peak(name: str, side: str, device: str) -> float:
    """Peak MiB of two calls; called in a process of its own."""
    sides = Sides(name, device)
    gc.collect()
    if device == "cuda":
        getattr(sides, side)()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        getattr(sides, side)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.no_grad():
        sides.model.eval()(sides.inputs[:1])  # the libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before_kib = _status("VmRSS")
    for _ in range(2):
        getattr(sides, side)()
    return (_status("VmHWM") - before_kib) / 2**10


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measured(name: str, device: str, rounds: int) -> dict[str, str]:
    """One row of the table."""
    sides = Sides(name, device)

    def time_of(run: Callable[[], None]) -> Callable[[], float]:
        if device == "cpu":
            return lambda: seconds(run, 1, time.process_time)
        return lambda: seconds(run, 10)

    sides.ours()  # the plan is checked once in a run
    times = in_turn({"train": time_of(sides.train), "ours": time_of(sides.ours)}, rounds)
    peers: dict[str, Callable[[], float]] = {
        "loop": time_of(sides.loop),
        "ours": time_of(sides.ours),
    }
    for chunk in CHUNKS:
        peers[f"vmap, chunk {chunk}"] = time_of(lambda chunk=chunk: sides.vmapped(chunk))
    against = in_turn(peers, max(1, rounds // 2))
    best = min((n for n in peers if n != "ours"), key=lambda n: sum(against[n]))
    trace = fisher_trace(sides.model, sides.inputs)
    memories = [memory_of(name, side, device) for side in ("ours", "train")]
    return {
        "network": f"{name}, batch {len(sides.inputs)}",
        "time / training pass": ratio(times["ours"], times["train"]),
        "best way by hand": best,
        "time / best by hand": ratio(against["ours"], against[best]),
        "loop / training pass": f"{min(against['loop']) / min(times['train']):.2f}",
        "peak memory / training pass": f"{memories[0] / memories[1]:.2f}",
        "parameters on the fast path": f"{1 - trace.slow_parameters / trace.num_parameters:.0%}",
    }


def main() -> None:
    """Measure the networks and publish the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(BATCHES)[:4])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time counts every thread
    rows = []
    for name in track(options.names, "networks"):
        rows.append(measured(name, options.device, options.rounds))
        print(rows[-1], flush=True)
    publish(
        "fisher_cost" if options.device == "cpu" else f"fisher_cost_{options.device}",
        "Cost of one Fisher trace at 224 px, as ratios: median of the rounds (lowest to highest)",
        rows,
        "The training pass is a forward and backward pass in train mode on the same examples. By "
        "hand: squared norms of per-example gradients with labels drawn from the model. On a CPU: "
        "processor time of one thread.",
    )


if __name__ == "__main__":
    main()
