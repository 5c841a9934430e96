"""What a training says about itself before its first step."""

from __future__ import annotations

import torch

from . import console
from .run import Run
from .tables import paper


def announce(run: Run, why: str) -> None:
    """What is trained on what, and every fast path that is not taken.

    Args:
        run: about to begin.
        why: the device was chosen.
    """
    recipe, data = run.recipe, run.data
    height, width, _ = data.image_shape
    console.line(
        f"{recipe.name}: {recipe.method.name} at epsilon {recipe.epsilon}, {recipe.model.name}, {data.name} "
        f"({len(data.train):,} train, {len(data.heldout):,} held-out, {len(data.test):,} test images of "
        f"{height}x{width}, from {data.source})"
    )
    reported = paper.beside(recipe)
    if reported is not None:
        console.line(reported)
    console.line(f"device {run.device} ({why}), {run.execution.describe()}, {torch.get_num_threads()} CPU threads")
    loader = run.loader_choice
    workers = "" if loader.name == "resident" else f", {recipe.loader.worker_count} workers"
    console.line(f"loader {loader.name} ({loader.why}){workers}")
    for line in (*loader.notes, *run.slower_paths()):
        console.line(line)
    if recipe.guard != "off" and run.method.select_by == "clean":
        console.line(f"guard {recipe.guard}: method {recipe.method.name} attacks nothing that it could overfit to")


def prepare(run: Run) -> None:
    """Compiles and captures the steps, and says how long it took and what was not to be had."""
    refused = run.prepare()
    if refused is not None:
        console.line(f"not captured as CUDA graphs ({refused}): {run.execution.mode} steps instead")
    if run.prepared is not None:
        took, prepared = run.prepared.warmup + run.prepared.capture, run.prepared
        console.line(
            f"steps prepared in {took:.1f} s: warm-up with compilation {prepared.warmup:.1f} s, capture "
            f"{prepared.capture:.1f} s"
        )


def announce_resumption(run: Run) -> str:
    """Says where a run goes on, and whether bit for bit; returns what it says."""
    said = f"resuming at epoch {run.at.epoch + 1}, step {run.at.step}: {run.numerics.verdict}"
    console.line(said)
    return said
