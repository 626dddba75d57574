"""What is told of a text that was only read: log-probabilities of its tokens, and the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from smollm3.infer.generation import Step
from smollm3.infer.text import TextStream
from smollm3.tokenizer import Tokenizer


def chosen(ids_T: Tensor, logits_RV: Tensor, place: int) -> Tensor:
    """[R, 2] log-probabilities of the token behind each of R places, of which `place` is the first,
    and of the likeliest token."""
    next_R1 = ids_T[place + 1 : place + 1 + len(logits_RV), None].to(logits_RV.device)
    pair_R2 = torch.cat([logits_RV.gather(1, next_R1), logits_RV.amax(-1, keepdim=True)], dim=1)
    return (pair_R2 - logits_RV.logsumexp(-1, keepdim=True)).cpu()


def ranked(ids_T: Tensor, top: int, logits_RV: Tensor, place: int) -> Tensor:
    """[R, 1 + 2 top] float64: `chosen`'s first, the likeliest log-probabilities and their ids."""
    own_R1 = chosen(ids_T, logits_RV, place)[:, :1].double()
    best = (logits_RV - logits_RV.logsumexp(-1, keepdim=True)).topk(top)
    return torch.cat([own_R1, best.values.cpu().double(), best.indices.cpu().double()], dim=1)


def tell_steps(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    top: int,
    told: Future[list[Step]],
    found: Future[Tensor],
) -> None:
    if error := found.exception():
        told.set_exception(error)
        return
    stream, steps = TextStream(tokenizer), []
    rows = [[math.nan] + [0.0] * 2 * top, *found.result().tolist()]
    for place, (token, row) in enumerate(zip(ids, rows, strict=True)):
        piece = stream.push(token) + (stream.end() if place == len(ids) - 1 else "")
        best = zip(map(int, row[1 + top :]), row[1 : 1 + top], strict=True)
        steps.append(Step(token, piece, row[0], tuple(best)))
    told.set_result(steps)
