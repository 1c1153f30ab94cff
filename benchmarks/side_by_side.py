"""What all benchmarks share: two sides in turn, the machine's description, the table, the files."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, threads, memory, device and versions: what a ratio was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    names = ("torch", "torchvision", "torchmetrics", "lightning", "timm")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{model}, {os.cpu_count()} cores ({torch.get_num_threads()} threads used), "
        f"{memory:.0f} GiB, {device}; Python {platform.python_version()}, {packages}"
    )


def seconds(
    run: Callable[[], Any], repeat: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time ``repeat`` calls; the seconds of one."""
    start = clock()
    for _ in range(repeat):
        run()
    return (clock() - start) / repeat


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure the sides alternately, after one round that does not count.

    Whatever else the machine does then falls on all sides alike; quote the ratio of each round.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Median of the rounds' ratios, with the lowest and highest."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def publish(name: str, title: str, rows: Sequence[Mapping[str, str]], notes: str = "") -> None:
    """Print the table and write it, with the machine, to ``results/<name>.md`` and ``.json``."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    Console(width=120).print(table)
    print(machine())
    head = " | ".join(rows[0])
    lines = [f"| {' | '.join(row.values())} |" for row in rows]
    text = [f"# {title}", "", f"| {head} |", "|" + "---|" * len(rows[0]), *lines, ""]
    text += [notes, ""] if notes else []
    command = f"python benchmarks/{Path(sys.argv[0]).name}"  # several tables may come from one
    text += [f"`{command}`, {date.today()}, {machine()}.", ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(text))
    content = {"title": title, "machine": machine(), "date": str(date.today()), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
