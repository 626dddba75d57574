"""Bytes that training needs on each process, and the nearest split that fits; plain arithmetic.

`simulate.py` runs the real sharded step under fake tensors; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from smollm3.errors import UserError
from smollm3.model import ModelConfig
from smollm3.train.layout import Layout
from smollm3.train.spec import Adapter, Recompute, TrainStage
from smollm3.units import size

# Of a card's memory, what CUDA, NCCL and fragments take.
RESERVE = 0.08
# On a CPU: the interpreter, PyTorch with its optimizers, and the scratch memory of its libraries.
PROCESS = 400 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. head: logits, and what of the weights is gathered or copied while they
    are made; block: the same of a block in the backward pass. accumulated: whether gradients are
    held all the time; else they come as the activations go. process: what it takes on a CPU before
    it has a model. merged: the model in the end, where its matrices were in 4 bits before. host:
    beside all this, what waits in the memory of a GPU's host."""

    weights: int
    gradients: int
    moments: int
    activations: int
    head: int
    block: int
    accumulated: bool
    process: int = 0
    merged: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        if self.accumulated:
            most = self.gradients + self.activations + max(self.head, self.block)
        else:
            most = max(self.activations + max(self.head, self.block), self.gradients + self.block)
        return self.process + max(self.weights + self.moments + most, self.merged)


def kept_elements(
    config: ModelConfig, stage: TrainStage, recompute: str, *, autocast: bool
) -> tuple[int, int]:
    """(elements, further float32 elements) that a layer keeps for each token.

    none: both norms keep their input (2·E float32) and, unless they are frozen, the normed state
    (2·E); what goes into q, k, v and into gate, up (2·E); attention queries, keys, values and its
    output: 2·H·D + 2·G·D; the feed-forward gate, silu(gate), up and their product: 4·F. An adapter
    keeps A·x of each of its layers, DoRA their outputs too.
    selective: the products of matrices and attention alone (q, k, v, attention, o: 2·H·D + 2·G·D +
    E; gate, up, down: 2·F + E) and the input E. full: E.
    autocast: float32 weights and states under bfloat16 products: q, k, v, gate and up keep copies
    of their own, states between the blocks are float32.

    Compiled without recompute, what is cheap is made again: the float32 and F, and under float8,
    which keeps inputs in 8 bits, E and F more. 3B on an H200, PyTorch 2.11: 94.2 and 64 kB a token
    and layer; these are 92.7 and 66.6.
    """
    E, F, adapter = config.hidden, config.ffn, stage.adapter
    heads = 2 * (config.heads + config.kv_heads) * config.head_dim
    if recompute == "full":
        return (0, E) if autocast else (E, 0)
    if recompute == "selective":
        return (2 * E + heads + 2 * F, E) if autocast else (3 * E + heads + 2 * F, 0)
    if stage.compile and stage.is_half and not autocast:
        return (
            (3 * E + heads + 2 * F, 0)
            if stage.precision == "float8"
            else (4 * E + heads + 3 * F, 0)
        )
    normed = 0 if adapter else 2 * E
    elements, float32s = heads + 4 * F, 2 * E
    if autocast:
        elements, float32s = elements + 5 * E, float32s + normed
    else:
        elements += 2 * E + normed
    if adapter is not None:
        elements += adapter.rank * len(adapter.layers)
        if adapter.kind == "dora":
            elements += sum(outputs for _, outputs in _adapted(config, adapter))
    return elements, float32s


def _adapted(config: ModelConfig, adapter: Adapter) -> list[tuple[int, int]]:
    """(inputs, outputs) of the layers of a block that have an adapter."""
    layers = adapter.layers
    return [
        (inputs, outputs)
        for name, (outputs, inputs) in config.linear_shapes.items()
        if name.startswith("blocks.0.") and name.rpartition(".")[2] in layers
    ]


def trained_parameters(config: ModelConfig, adapter: Adapter | None) -> int:
    """How many weights have gradients and moments: all, or an adapter's rank·(in + out) for each of
    its layers, DoRA's lengths, and embeddings that it trains whole."""
    if adapter is None:
        return config.parameters
    dora = adapter.kind == "dora"
    layer = sum(
        adapter.rank * (inputs + outputs) + dora * outputs
        for inputs, outputs in _adapted(config, adapter)
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


def _gathered(config: ModelConfig, layout: Layout, e: int, *, elsewhere: bool) -> tuple[int, int]:
    """Bytes while the logits are made, and in the backward pass of a block. Embedding and head stay
    gathered, and a block is at work while the next is fetched, in e bytes a number. Gradients are
    made whole, and summed in float32. elsewhere: shards come from the host and gradients go there.
    """
    head = _embeddings(config)
    block = (config.parameters - head) // config.layers
    at_head = e * (2 * head + 2 * block) // layout.tp
    at_block = (e * (head + 3 * block) + 4 * max(head, block)) // layout.tp
    if elsewhere:
        parts = layout.shard * layout.cp * layout.tp
        at_head += 4 * (head + 2 * block) // parts
        at_block += 4 * (2 * block + max(head, block)) // parts
    return at_head, at_block


def _copies(config: ModelConfig, adapter: Adapter | None, learnt: int, *, half: bool) -> int:
    """Bytes of what a whole model makes of its weights to compute."""
    copies = 0
    trains_head = adapter is None or adapter.embeddings
    if half:  # bfloat16 copies of what is trained, and of the head
        copies += 2 * learnt + (0 if trains_head else 2 * config.vocab_size * config.hidden)
    if config.tied and trains_head:  # the head's waits for the embedding's
        copies += 4 * config.vocab_size * config.hidden
    largest = config.hidden * config.ffn
    if adapter is not None and adapter.base == "nf4":  # the largest matrix again, and its codes
        copies += 6 * largest
    if adapter is not None and adapter.kind == "dora":  # its sum with B·A, whose lengths are taken
        copies += (8 if half else 4) * largest
    return copies


def training_memory(
    config: ModelConfig, stage: TrainStage, layout: Layout, *, on_gpus: bool, chunk: int
) -> Memory:
    """Bytes on one process of `layout`, each with micro_batch rows at once.

    on_gpus: there FSDP, where weights, gradients and moments are float32 shards (16 bytes a
    parameter over shard x cp x tp) and the layers at work are gathered in the stage's precision.
    On a CPU, under an adapter, whose base is frozen, and with 8-bit moments (a code for each and a
    scale of 4 bytes for 256) every process holds them whole. chunk: logits in memory at once.
    What is offloaded waits on the host: a layer's shards come in float32 and their gradients go so;
    two inputs of a block are here, one that goes and one that came.
    """
    adapter = stage.adapter
    sharded = on_gpus and not stage.is_whole
    elsewhere = on_gpus and layout.offload
    waits = on_gpus and stage.recompute == "offload"
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

    autocast = half and not sharded
    if sharded:
        copies, (at_head, at_block) = 0, _gathered(config, layout, e, elsewhere=elsewhere)
    else:
        copies, at_head, at_block = _copies(config, adapter, learnt, half=half), 0, 0
    kept = "full" if stage.recompute == "offload" else stage.recompute
    elements, float32s = kept_elements(config, stage, kept, autocast=autocast)
    # Tensor parallelism shares products by heads and features, the rest by sequence; but what goes
    # into the products of attention and of the feed-forward is gathered.
    layer = e * elements + 4 * float32s
    layers = (2 if waits else config.layers) * layer // layout.tp
    if stage.recompute == "none":
        layers += config.layers * e * 2 * config.hidden * (layout.tp - 1) // layout.tp
    # The last norm keeps its input, and where it is trained the normed state.
    last = 4 + (0 if adapter is not None else 4 if autocast else e)
    again = 0
    if stage.recompute != "none":  # in the backward pass one block at a time is there in full
        whole, more = kept_elements(config, stage, "none", autocast=autocast)
        again = tokens * (e * whole + 4 * more) // layout.tp
    # In float32 the logits, log-softmax and its gradient; one more where ranks share them.
    logits = min(tokens * config.vocab_size, chunk) * (16 if layout.tp > 1 else 12) // layout.tp
    gradients = 4 * learnt
    moments = 8 * learnt if stage.optimizer.moments == "float32" else 2 * learnt + learnt // 32
    host = tokens * config.layers * layer // layout.tp if waits else 0
    if elsewhere:
        host += weights + gradients + moments
        weights = gradients = moments = 0
    merged = 0
    if adapter is not None and adapter.base == "nf4" and not on_gpus:
        merged = 4 * config.parameters + 16 * learnt
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=moments,
        activations=tokens * (layers + last * config.hidden // layout.tp),
        head=at_head + copies + logits,
        block=at_block + copies + again,
        accumulated=not sharded or rows < all_rows,
        process=0 if on_gpus else PROCESS,
        merged=merged,
        host=host,
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
        memory = training_memory(config, changed, layout, on_gpus=True, chunk=chunk)
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
    policies: tuple[Recompute, ...] = ("none", "selective", "full")
    first = stage.recompute  # what waits on the host is a choice of the recipe's alone
    policies = policies[policies.index(first) :] if first in policies else (first,)
    for used in sorted(_divisors_below(processes), reverse=True):
        for cp in (1, 2, 4, 8, 16):
            for tp in (1, 2, 4, 8):
                if config.kv_heads % tp or used % (cp * tp):
                    continue
                if stage.is_whole and cp * tp > 1:
                    continue  # every process holds the whole model
                groups = used // (cp * tp)
                shards = (1, 2, 4, 8, 16, 32, 64) if not stage.is_whole else (1,)
                for shard in [n for n in shards if groups % n == 0]:
                    layout = Layout(groups // shard, shard, cp, tp)
                    for recompute in policies:
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
