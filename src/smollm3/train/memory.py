"""Bytes that training needs on each process, and the nearest split that fits; plain arithmetic.

`simulate.py` runs the real sharded step under fake tensors; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smollm3.errors import UserError
from smollm3.model import ModelConfig
from smollm3.train.layout import Layout
from smollm3.train.spec import Adapter, TrainStage
from smollm3.units import size

# Of a card's memory, what CUDA, NCCL and fragments take.
RESERVE = 0.08


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. head: logits and what is gathered while they are made; block: the same
    of a block in the backward pass. accumulated: whether gradients are held all the time; else
    they come as the activations go."""

    weights: int
    gradients: int
    moments: int
    activations: int
    head: int
    block: int
    accumulated: bool

    @property
    def total(self) -> int:
        if self.accumulated:
            most = self.gradients + self.activations + max(self.head, self.block)
        else:
            most = max(self.activations + max(self.head, self.block), self.gradients + self.block)
        return self.weights + self.moments + most


def kept_elements(config: ModelConfig, stage: TrainStage, recompute: str) -> tuple[int, int]:
    """(elements, further float32 elements) that a layer keeps for each token.

    none: both norms keep their input (float32), the normed and the scaled state: 4·E, 2·E
    float32; attention queries, keys, values and its output: 2·H·D + 2·G·D; the feed-forward gate,
    silu(gate), up and their product: 4·F. selective: the products of matrices and attention alone
    (q, k, v, attention, o: 2·H·D + 2·G·D + E; gate, up, down: 2·F + E) and the input E. full: E,
    which beside an adapter is float32.

    Compiled without recompute, what is cheap is made again: the float32 and F, and under float8,
    which keeps inputs in 8 bits, E and F more. 3B on an H200, PyTorch 2.11: 94.2 and 64 kB a token
    and layer; these are 92.7 and 66.6.
    """
    E, F = config.hidden, config.ffn
    heads = 2 * (config.heads + config.kv_heads) * config.head_dim
    if recompute == "full":
        return (0, E) if stage.adapter is not None else (E, 0)
    if recompute == "selective" or (stage.compile and stage.precision == "float8"):
        return 3 * E + heads + 2 * F, 0
    if stage.compile and stage.is_half:
        return 4 * E + heads + 3 * F, 0
    return 4 * E + heads + 4 * F, 2 * E


def trained_parameters(config: ModelConfig, adapter: Adapter | None) -> int:
    """How many weights have gradients and moments: all, or an adapter's rank·(in + out) for each of
    its layers, DoRA's lengths, and embeddings that it trains whole."""
    if adapter is None:
        return config.parameters
    E, F, D = config.hidden, config.ffn, config.head_dim
    shapes = {"q": (E, config.heads * D), "k": (E, config.kv_heads * D), "o": (config.heads * D, E)}
    shapes |= {"v": shapes["k"], "gate": (E, F), "up": (E, F), "down": (F, E)}
    dora = adapter.kind == "dora"
    layer = sum(
        adapter.rank * (inputs + outputs) + dora * outputs
        for inputs, outputs in (shapes[name] for name in adapter.layers)
    )
    return config.layers * layer + (_embeddings(config) if adapter.embeddings else 0)


def _embeddings(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden * (1 if config.tied else 2)


def _frozen_bytes(config: ModelConfig, adapter: Adapter, half: bool) -> int:
    """Of a model under an adapter: the matrices of its blocks as they are held, in 4 bits with a
    scale of 16 for 64 of them; the rest in float32."""
    small = _embeddings(config) + (2 * config.layers + 1) * config.hidden
    matrices = config.parameters - small
    held = matrices * 17 // 32 if adapter.base == "nf4" else matrices * (2 if half else 4)
    return held + 4 * small


def training_memory(
    config: ModelConfig, stage: TrainStage, layout: Layout, *, sharded: bool, chunk: int
) -> Memory:
    """Bytes on one process of `layout`, each with micro_batch rows at once.

    sharded: FSDP, where weights, gradients and moments are float32 shards (16 bytes a parameter
    over shard x cp x tp) and the layers at work are gathered in the stage's precision; else every
    process holds them whole, as under an adapter, whose base is frozen. chunk: logits in memory at
    once.
    """
    adapter = stage.adapter
    sharded = sharded and adapter is None
    half = stage.is_half
    e = 2 if half else 4
    parts = layout.shard * layout.cp * layout.tp
    learnt = -(-trained_parameters(config, adapter) // parts)
    weights = 4 * learnt
    if adapter is not None:
        whole = 4 * _embeddings(config) if adapter.embeddings else 0  # counted already
        weights += _frozen_bytes(config, adapter, half) - whole
    all_rows = -(-stage.batch // layout.rows)
    rows = min(all_rows, stage.micro_batch or all_rows)
    rows, all_rows = (n * (2 if stage.is_preference else 1) for n in (rows, all_rows))
    tokens = rows * -(-stage.context // layout.cp)

    # Gathered: embedding and head stay, and a block is at work while the next is fetched. Gradients
    # are made whole, and summed in float32.
    at_head = at_block = 0
    if sharded:
        head = _embeddings(config)
        block = (config.parameters - head) // config.layers
        at_head = e * (2 * head + 2 * block) // layout.tp
        at_block = (e * (head + 3 * block) + 4 * max(head, block)) // layout.tp
    if adapter is not None and half:
        at_head = e * config.vocab_size * config.hidden  # the frozen head, as autocast takes it
    if adapter is not None and adapter.base == "nf4":  # the largest matrix, made again from codes
        at_block = 12 * config.hidden * config.ffn
    elements, float32s = kept_elements(config, stage, stage.recompute)
    # Tensor parallelism shares products by heads and features, the rest by sequence; but what goes
    # into the products of attention and of the feed-forward is gathered.
    layers = config.layers * (e * elements + 4 * float32s) // layout.tp
    if stage.recompute == "none":
        layers += config.layers * e * 2 * config.hidden * (layout.tp - 1) // layout.tp
    again = 0
    if stage.recompute != "none":  # in the backward pass one block at a time is there in full
        whole, more = kept_elements(config, stage, "none")
        again = tokens * (e * whole + 4 * more) // layout.tp
    # In float32 the logits, log-softmax and its gradient; one more where ranks share them.
    logits = min(tokens * config.vocab_size, chunk) * (16 if layout.tp > 1 else 12) // layout.tp
    return Memory(
        weights=weights,
        gradients=4 * learnt,
        moments=8 * learnt,
        activations=tokens * (layers + (4 + e) * config.hidden // layout.tp),
        head=at_head + logits,
        block=at_block + again,
        accumulated=not sharded or rows < all_rows,
    )


def fits(memory: Memory, card: int) -> bool:
    return memory.total <= card * (1 - RESERVE)


def describe(layout: Layout, stage: TrainStage) -> str:
    """A split in the recipe's own words."""
    rows = "" if stage.micro_batch is None else f", micro_batch {stage.micro_batch}"
    return f"{layout}, recompute {stage.recompute}{rows}"


def nearest(
    config: ModelConfig, stage: TrainStage, processes: int, card: int, chunk: int
) -> tuple[Layout, TrainStage] | None:
    """The split of at most `processes` that fits a card of `card` bytes with the least talk.

    As many processes as can be used; among those the fewest tp, cp and then shard; then the least
    computed twice. None: no split fits.
    """
    for layout, changed in candidates(config, stage, processes):
        memory = training_memory(config, changed, layout, sharded=True, chunk=chunk)
        if layout.problem(config, changed) is None and fits(memory, card):
            return layout, changed
    return None


def chosen(
    config: ModelConfig, stage: TrainStage, processes: int, card: int, chunk: int
) -> tuple[Layout, TrainStage]:
    """The split of all `processes`; a UserError, with the nearest plan, where there is none."""
    best = nearest(config, stage, processes, card, chunk)
    if best is None:
        raise UserError(
            f"no split of {processes} GPUs of {size(card)} fits; use more or larger ones"
        )
    if best[0].size != processes:
        raise UserError(
            f"batch: {stage.batch} rows of {stage.context} tokens do not use {processes} GPUs; "
            f"nearest plan that works: {describe(*best)} on {best[0].size}"
        )
    return best


def candidates(
    config: ModelConfig, stage: TrainStage, processes: int
) -> Iterator[tuple[Layout, TrainStage]]:
    """Splits in the order in which they are worth trying."""
    policies = ("none", "selective", "full")
    for used in sorted(_divisors_below(processes), reverse=True):
        for cp in (1, 2, 4, 8, 16):
            for tp in (1, 2, 4, 8):
                if config.kv_heads % tp or used % (cp * tp):
                    continue
                if stage.adapter is not None and cp * tp > 1:
                    continue  # every process holds the whole model
                groups = used // (cp * tp)
                shards = (1, 2, 4, 8, 16, 32, 64) if stage.adapter is None else (1,)
                for shard in [n for n in shards if groups % n == 0]:
                    layout = Layout(groups // shard, shard, cp, tp)
                    for recompute in policies[policies.index(stage.recompute) :]:
                        for rows in dict.fromkeys((stage.micro_batch, 1)):
                            yield (
                                layout,
                                stage.model_copy(
                                    update={"recompute": recompute, "micro_batch": rows}
                                ),
                            )


def _divisors_below(processes: int) -> set[int]:
    """Numbers of processes that whole machines of 8 make, and smaller ones."""
    return {processes} | {n for n in range(1, processes + 1) if n <= 8 or n % 8 == 0}
