"""What the loader hands to the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's rows of batch k. All tensors are [B, T] on the CPU, in pinned memory where they
    are for a GPU.

    ids: int64 inputs. targets: int64, the token that follows each input. weights: float32, 0
    where a target is not trained on (next document's first token, prompt, padding).
    documents: int64, the document each token belongs to, for intra-document masking.
    For preference data rows come as pairs: the first half of the rows are the chosen answers,
    the second half the rejected ones in the same order, right-padded with weight 0, one document
    a row; `pairs` holds (source, pair number) for each. Else `pairs` is empty.
    blank: how many pairs at the end are there for their place alone and count nothing; blank rows
    of text have no weight anyway.
    used: tokens taken from each source by the whole batch, all ranks together.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    documents_BT: Tensor
    used: dict[str, int]
    pairs: tuple[tuple[str, int], ...] = ()
    blank: int = 0
