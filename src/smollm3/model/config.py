"""The shape of a model: everything that `config.json` says about the network itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

# RULER at 128k, twice the trained 64k, is the longest that was ever published for SmolLM3.
MAX_EXTENSION = 2


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (Peng et al. 2023, arXiv:2309.00071), applied at inference.

    `factor` is new context / `original_context`; the betas bound the ramp in full turns.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """A SmolLM3- or Llama-shaped decoder.

    `uses_rope[i]` says whether layer i rotates its queries and keys; SmolLM3 leaves every 4th
    layer without positions (NoPE). `context` is in tokens, `init_std` is the standard deviation
    of the initial weights.
    """

    vocab_size: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    uses_rope: tuple[bool, ...]
    rope_theta: float
    context: int
    norm_eps: float = 1e-6
    init_std: float = 0.02
    tied: bool = True
    yarn: Yarn | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if not self.rope_theta > 1:
            raise ValueError(f"rope_theta {self.rope_theta} is not above 1")
        if self.yarn and not 1e-3 <= self.yarn.beta_slow < self.yarn.beta_fast <= 1e6:
            slow, fast = self.yarn.beta_slow, self.yarn.beta_fast
            raise ValueError(f"YaRN ramps between beta_slow and beta_fast, not {slow} and {fast}")
        if len(self.uses_rope) != self.layers:
            entries = len(self.uses_rope)
            raise ValueError(f"uses_rope has {entries} entries for {self.layers} layers")

    @property
    def parameters(self) -> int:
        """Number of parameters; 3,075,098,624 for SmolLM3-3B."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embeddings = self.vocab_size * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * block + self.hidden

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the blocks' matrices, as `blocks.3.attention.q`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        E, F = self.hidden, self.ffn
        block = {
            "attention.q": (q, E), "attention.k": (kv, E), "attention.v": (kv, E),
            "attention.o": (E, q), "ffn.gate": (F, E), "ffn.up": (F, E), "ffn.down": (E, F),
        }  # fmt: skip
        return {f"blocks.{i}.{n}": shape for i in range(self.layers) for n, shape in block.items()}

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs for one token: 6 per weight used, and causal attention's share.

        Attention: scores and values are 2 products of 2·H·D per key, (context/2) keys on
        average, times 3 for forward and backward.
        """
        used = self.parameters if self.tied else self.parameters - self.vocab_size * self.hidden
        attention = 2 * 2 * self.heads * self.head_dim * (context / 2) * self.layers
        return 6.0 * used + 3.0 * attention


def nope_pattern(layers: int, nope_every: int) -> tuple[bool, ...]:
    """`uses_rope` with NoPE on layers nope_every-1, 2·nope_every-1, ... (0-based); 0: RoPE on all.

    SmolLM3: nope_every 4, so layers 3, 7, ..., 35 do not rotate.
    """
    return tuple(nope_every == 0 or (i + 1) % nope_every != 0 for i in range(layers))


def extend_context(config: ModelConfig, context: int) -> ModelConfig:
    """`config` able to hold `context` tokens: by YaRN of factor context / original where that is
    more than it holds already; otherwise unchanged, so that short prompts stay unscaled.

    Raises ValueError for more than MAX_EXTENSION times the original context.
    """
    if context < 1:
        raise ValueError(f"context: must be at least 1 token, not {context}")
    if context <= config.context:
        return config
    original = config.yarn.original_context if config.yarn else config.context
    if context > MAX_EXTENSION * original:
        raise ValueError(
            f"context: {context} tokens are {context / original:.3g} times the {original} that the "
            f"model was trained on; YaRN holds to {MAX_EXTENSION} times, so take at most "
            f"{MAX_EXTENSION * original} or train it on longer rows"
        )
    yarn = replace(config.yarn or Yarn(1.0, original), factor=context / original)
    return replace(config, context=context, yarn=yarn)
