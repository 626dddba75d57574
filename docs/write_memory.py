"""Prints the table of docs/finetuning.md, what training takes on cards of several sizes, as the
planner computes it; a test compares it."""

from __future__ import annotations

from smollm3.recipe import load_recipe
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS
from smollm3.train.memory import fits, training_memory
from smollm3.train.spec import TrainStage
from smollm3.units import size

CARDS = (8, 16, 24, 40, 80)  # GB
KINDS = {"QLoRA": {"rank": 16, "base": "nf4"}, "LoRA": {"rank": 16}, "full": None}
CONTEXTS = (4096, 32_768)
VOCABULARY = 128_256
POLICIES = ("none", "selective", "full", "offload")


def cell(card: int, adapter: dict[str, object] | None, context: int) -> str:
    """The least that is computed again where one row fits, and its bytes."""
    shape = load_recipe("smollm3-3b").model
    assert shape is not None
    model = shape.config(VOCABULARY, context=context)
    for recompute in POLICIES:
        stage = TrainStage.model_validate(
            {
                "kind": "train", "mixture": {"mine": 1}, "context": context, "batch": 8, "steps": 1,
                "micro_batch": 1, "precision": "bfloat16", "recompute": recompute,
                "adapter": adapter, "lr": {"peak": 1e-4},
            }
        )  # fmt: skip
        memory = training_memory(model, stage, Layout(), on_gpus=True, chunk=LOGITS)
        if fits(memory, card * 10**9):
            return f"{recompute}: {size(memory.total)}"
    return "–"


def table() -> str:
    lines = [f"| card | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for card in CARDS:
        cells = [", ".join(cell(card, kind, n) for n in CONTEXTS) for kind in KINDS.values()]
        lines.append(f"| {card} GB | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
