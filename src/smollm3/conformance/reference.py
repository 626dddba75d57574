"""What is right, what each mistake would give, and which mistake a measurement looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smollm3.conformance.kit import Kit, Weights
from smollm3.conformance.mistakes import MISTAKES, YARN_MISTAKES, Mistake


@dataclass(frozen=True)
class Measured:
    """logprobs [P, V] that a target told for the last P positions of `ids`; NaN: untold."""

    ids: list[int]
    logprobs: Tensor


class Reference:
    """The kit under our own model, each computation kept."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self._kept: dict[tuple[Weights, tuple[int, ...], str], Tensor] = {}

    def logprobs(
        self, weights: Weights, ids: Sequence[int], mistake: Mistake | None = None
    ) -> Tensor:
        """Natural log-probabilities [T, V] of the token after each prefix of `ids`."""
        key = (weights, tuple(ids), mistake.name if mistake else "")
        if key not in self._kept:
            model, ids_BT = self.kit.models[weights], torch.tensor([list(ids)])
            with torch.inference_mode():
                logits_BTV = mistake.logits(model, ids_BT) if mistake else model(ids_BT)
            self._kept[key] = logits_BTV[0].float().log_softmax(-1)
        return self._kept[key]

    def distance(
        self, weights: Weights, measured: Sequence[Measured], mistake: Mistake | None = None
    ) -> float:
        """Greatest difference in what was told; infinite where it is nothing or not finite."""
        return max(_distance(m.logprobs, self.logprobs(weights, m.ids, mistake)) for m in measured)

    def diagnose(self, weights: Weights, measured: Sequence[Measured], tolerance: float) -> str:
        """Name the mistake that explains the measurement: within `tolerance`, or, for targets
        that round, five times nearer than the truth and twice than any other mistake."""
        known = YARN_MISTAKES if weights == "yarn" else MISTAKES
        ranked = sorted((self.distance(weights, measured, m), m.name, m) for m in known)
        (nearest, name, mistake), (second, _, _) = ranked[:2]
        right = self.distance(weights, measured)
        if nearest <= tolerance or nearest < min(right / 5, second / 2):
            certainty = "" if nearest <= tolerance else "most likely "
            return f"{certainty}{name} (off from that by {nearest:.1e}): {mistake.fix}"
        if self._only_head_differs(weights, measured):
            return (
                "the output matrix is not the embedding: hidden states are right; tie lm_head to "
                "embed_tokens (tie_word_embeddings)"
            )
        return f"none of {len(known)} known mistakes; the nearest, {name}, is off by {nearest:.1e}"

    def _only_head_differs(self, weights: Weights, measured: Sequence[Measured]) -> bool:
        """Whether some other matrix makes the measured logits out of the right hidden states.

        Log-probabilities are logits less a number a row, so both sides are centred by row; a fit
        means something only where there are more positions than channels. (The driver is one for
        matrices without full rank: the kit leaves channels free.)
        """
        model = self.kit.models[weights]
        told = torch.cat([m.logprobs for m in measured])
        if len(told) < 2 * model.config.hidden or not bool(told.isfinite().all()):
            return False
        with torch.inference_mode():
            states = [model.hidden(torch.tensor([m.ids]))[0, -len(m.logprobs) :] for m in measured]
        h_NE, centred_NV = torch.cat(states).double(), told.double()
        centred_NV -= centred_NV.mean(1, keepdim=True)
        fit_NV = h_NE @ torch.linalg.lstsq(h_NE, centred_NV, driver="gelsd").solution
        return float((fit_NV - centred_NV).std() / centred_NV.std()) < 0.01


def _distance(told: Tensor, expected: Tensor) -> float:
    known = ~told.isnan()
    if not known.any():
        return float("inf")
    return float((told - expected[-len(told) :])[known].abs().max())
