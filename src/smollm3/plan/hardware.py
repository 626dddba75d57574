"""What a recipe is trained on: the GPUs that it names, those of this machine, or its CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Dense bfloat16 FLOP/s of one GPU, by its maker's data sheet (float16 for a T4).
GPUS = {
    "t4": 65e12,
    "l4": 121e12,
    "a10": 125e12,
    "l40s": 362e12,
    "rtx-3090": 71e12,
    "rtx-4090": 165e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
}
# Its memory, in 10^9 bytes; of an A100 the larger one.
GIGABYTES = {
    "t4": 16,
    "l4": 24,
    "a10": 24,
    "l40s": 48,
    "rtx-3090": 24,
    "rtx-4090": 24,
    "a100": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
}


@dataclass(frozen=True)
class Hardware:
    """`devices` GPUs of `peak` FLOP/s and `memory` bytes each; training uses the share `mfu`.

    28.7% is what SmolLM3's 14,000 tokens/s a GPU come to: 384 H100 need 23.97 days for 11.136T
    tokens.
    """

    devices: int
    name: str
    peak: float
    memory: int
    mfu: float = 0.287

    @classmethod
    def of(cls, gpu: str, devices: int) -> Hardware:
        """gpu: one of GPUS."""
        return cls(devices, gpu.upper(), GPUS[gpu], GIGABYTES[gpu] * 10**9)

    @classmethod
    def here(cls) -> Hardware | None:
        """This machine's GPUs; None where there are none, or none whose peak is known."""
        if not torch.cuda.is_available():
            return None
        full = torch.cuda.get_device_name(0)
        name = full.lower().replace(" ", "-")
        known = [gpu for gpu in GPUS if gpu in name.split("-") or gpu in name]
        return cls.of(max(known, key=len), torch.cuda.device_count()) if known else None

    def __str__(self) -> str:
        return (
            f"{self.devices} x {self.name}, {self.peak / 1e12:.0f} TFLOPS each, {self.mfu:.0%} used"
        )

    def seconds(self, flops: float) -> float:
        return flops / (self.devices * self.peak * self.mfu)
