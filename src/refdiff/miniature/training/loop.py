"""The training loop: limited in time, resumable, logged, with an exponential average of the weights.

The learning rate follows the share of the time budget that is spent, so that a run on a slow machine is fully
annealed too, after fewer steps; the log has their number.

Training on a CPU uses unfused attention, because torch's fused kernel is three to four times slower there:
at [24, 4, 256, 24] in bfloat16 on one core, forward and backward, 82 ms fused and 23 ms unfused.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - the models here have none
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Compute `scaled_dot_product_attention` step by step; [.., q, d] x [.., k, d] -> [.., q, d]."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query * factor) @ key.mT
    if is_causal:
        length = logits.shape[-1]
        later = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later, float("-inf"))
    if attn_mask is not None:
        logits = (
            logits.masked_fill(~attn_mask, float("-inf"))
            if attn_mask.dtype == torch.bool
            else logits + attn_mask
        )
    return logits.softmax(-1).to(value.dtype) @ value


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Make models use `attention` while the block runs."""
    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield


Loss = Callable[[np.random.Generator, float], tuple[Tensor, dict[str, float]]]

WARMUP_SHARE = 0.02
SAVE_EVERY_S = 60.0
LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage of the training."""

    name: str
    modules: nn.ModuleDict
    loss: Loss
    """Draws a batch, given the share of the budget that is spent; returns the loss and figures to log."""
    minutes: float
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    average: float = 0.998
    """Decay of the exponential average of the weights."""


def train(task: Task, folder: Path) -> None:
    """Run a task to the end of its budget, from its last checkpoint if there is one.

    Writes `folder/NAME.pt` (averaged weights, state to resume from) and `folder/NAME.jsonl` (the log), and
    leaves the averaged weights in `task.modules`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{task.name}.pt"
    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=task.learning_rate, weight_decay=task.weight_decay, betas=(0.9, 0.98)
    )
    averaged = {k: v.detach().clone() for k, v in task.modules.state_dict().items()}
    state: dict[str, Any] = {"step": 0, "elapsed_s": 0.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        task.modules.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        averaged, state = saved["averaged"], saved["state"]
    budget = 60.0 * task.minutes
    last_save = time.monotonic()
    log = (folder / f"{task.name}.jsonl").open("a")
    recent: dict[str, list[float]] = {}
    while state["elapsed_s"] < budget:
        started = time.monotonic()
        share = state["elapsed_s"] / budget
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * _learning_rate_factor(share)
        with unfused_attention():
            loss, figures = task.loss(np.random.default_rng((state["step"], len(task.name))), share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(task.average, (1 + state["step"]) / (10 + state["step"]))
        _update_average(averaged, task.modules, decay)
        state["step"] += 1
        state["elapsed_s"] += time.monotonic() - started
        for key, value in {"loss": float(loss.detach()), **figures}.items():
            recent.setdefault(key, []).append(value)
        if state["step"] % LOG_EVERY == 0:
            _report(log, task, state, recent, budget)
        if time.monotonic() - last_save > SAVE_EVERY_S:
            _save(checkpoint, task, optimizer, averaged, state)
            last_save = time.monotonic()
    log.close()
    _save(checkpoint, task, optimizer, averaged, state)
    task.modules.load_state_dict(averaged)


def averaged_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the averaged weights of stage `name`, finished or not."""
    weights: dict[str, Tensor] = torch.load(folder / f"{name}.pt", weights_only=True)["averaged"]
    return weights


def last_log(folder: Path, name: str) -> dict[str, float]:
    """Return the last line of a stage's log: steps, seconds, mean figures of the last steps."""
    line: dict[str, float] = json.loads((folder / f"{name}.jsonl").read_text().splitlines()[-1])
    return line


def _learning_rate_factor(share: float) -> float:
    if share < WARMUP_SHARE:
        return share / WARMUP_SHARE + 1e-3
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


@torch.no_grad()
def _update_average(averaged: dict[str, Tensor], modules: nn.Module, decay: float) -> None:
    for key, value in modules.state_dict().items():
        if value.is_floating_point():
            averaged[key].lerp_(value, 1 - decay)
        else:
            averaged[key].copy_(value)


def _report(
    log: Any, task: Task, state: dict[str, Any], recent: dict[str, list[float]], budget: float
) -> None:
    figures = {key: round(float(np.mean(values)), 4) for key, values in recent.items()}
    recent.clear()
    log.write(
        json.dumps({"step": state["step"], "elapsed_s": round(state["elapsed_s"], 1), **figures}) + "\n"
    )
    log.flush()
    done = state["elapsed_s"] / budget
    print(f"{task.name} {done:6.1%} step {state['step']} {figures}", file=sys.stderr, flush=True)  # noqa: T201 - progress


def _save(path: Path, task: Task, optimizer: Any, averaged: dict[str, Tensor], state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "weights": task.modules.state_dict(),
            "optimizer": optimizer.state_dict(),
            "averaged": averaged,
            "state": dict(state),
        },
        partial,
    )
    partial.rename(path)
