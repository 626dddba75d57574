"""LoRA's speed on a CPU beside trl and peft, step for step in one interleaved run.

Both train the same rows from the same weights: LoRA of rank 16 on all linear layers, float32, one
thread, loss on the assistant's tokens, nothing computed twice. A step of theirs is a batch of
conversations, padded to its longest (trl's packing needs flash attention, else conversations see
each other); one of ours is rows packed with about as many. Ours is the whole loop; theirs is
SFTTrainer's training step, clipping and its AdamW. Counted are the conversations' own tokens in a
second of the processor's time, so that pauses by others count for nobody.

    python benchmarks/finetuning.py [--shape small] [--steps 50]

writes benchmarks/results/finetuning.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from smollm3 import checkpoint, data
from smollm3.chat import default_template
from smollm3.data.spec import FileSource
from smollm3.data.words import WORDS
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer
from smollm3.train import ProcessGroup, TrainJob
from smollm3.train.loop import Trainer
from smollm3.train.spec import Adapter, LearningRate, Optimizer, TrainStage

SHAPES = {  # layers, hidden, heads, kv_heads, ffn, vocabulary
    "small": (12, 192, 3, 1, 512, 6144),  # a third of the other in width, with its share of head
    "135m": (30, 576, 9, 3, 1536, 49152),
}
CONTEXT, TALKS = 1024, 8  # of a row of ours; conversations in a batch of theirs
WARM = 3  # first steps, that are not counted


def talks(n: int) -> list[dict[str, Any]]:
    """Conversations whose lengths spread as people's do: log-normal, the answer three times the
    question."""
    rng = random.Random(0)

    def words(median: float) -> str:
        n = min(400, max(1, round(rng.lognormvariate(0, 0.9) * median)))
        return " ".join(rng.choice(WORDS) for _ in range(n))

    return [
        {
            "messages": [
                {"role": "user", "content": words(25)},
                {"role": "assistant", "content": words(75)},
            ]
        }
        for _ in range(n)
    ]


def prepare(shape: str, rows: list[dict[str, Any]], folder: Path) -> ModelConfig:
    """The base model, as a Hugging Face folder, and the rows as a file."""
    layers, hidden, heads, kv_heads, ffn, vocab = SHAPES[shape]
    texts = [message["content"] for row in rows for message in row["messages"]]
    tokenizer = Tokenizer.train(texts, min(vocab, 6144), default_template("bench", None, None))
    config = ModelConfig(
        vocab, layers, hidden, heads, kv_heads, hidden // heads, ffn, nope_pattern(layers, 4),
        10_000.0, 2 * CONTEXT,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(0)
    checkpoint.save_model(model, tokenizer, folder / "model")
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config


def ours(config: ModelConfig, folder: Path, steps: int) -> Trainer:
    source = FileSource(kind="jsonl", files=[str(folder / "talks.jsonl")], format="chat")
    tokenizer = checkpoint.load_tokenizer(folder / "model")
    shard = data.prepare("talks", source, tokenizer, folder / "data", 0)
    rows = max(1, round(TALKS * float(shard.lengths().mean()) / CONTEXT))
    stage = TrainStage(
        kind="train", mixture={"talks": 1}, loss="assistant", packing="bfd", context=CONTEXT,
        batch=rows, micro_batch=1, steps=steps, lr=LearningRate(peak=1e-4), adapter=Adapter(),
        optimizer=Optimizer(betas=(0.9, 0.999), weight_decay=0),
    )  # fmt: skip
    job = TrainJob(
        stage=stage, parent=str(folder / "model"), model=config, tokenizer=str(folder / "model"),
        shards={"talks": str(shard.folder)}, start={"talks": 0}, optimizer=None,
        work=str(folder / "work"), seed=0, threads=1,
    )  # fmt: skip
    return Trainer(job, ProcessGroup.single(), print)


class Theirs:
    """SFTTrainer's step on a LoRA of the same size."""

    def __init__(self, rows: list[dict[str, Any]], folder: Path) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        args = SFTConfig(
            str(folder / "trl"), per_device_train_batch_size=TALKS, max_length=CONTEXT + 1,
            assistant_only_loss=True, learning_rate=1e-4, max_grad_norm=1.0, seed=0,
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        self.trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0, target_modules="all-linear"
            ),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # as its own loop sets it
        self.batches = iter(self.trainer.get_train_dataloader())
        self.model = self.trainer.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.trainer.create_optimizer()

    def step(self, inputs: dict[str, Any]) -> None:
        self.optimizer.zero_grad()
        self.trainer.training_step(self.model, inputs)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()


def compare(shape: str, steps: int, folder: Path) -> dict[str, float]:
    """Tokens a second of the processor of both, and the median and range of the ratios of five
    stretches of the run."""
    rows = talks((steps + 1) * TALKS)
    config = prepare(shape, rows, folder)
    theirs = Theirs(rows, folder)
    mine = ours(config, folder, steps)
    spent: dict[str, list[tuple[int, float]]] = {"smollm3": [], "trl": []}
    for k in range(steps):
        batch = mine.loader.batch(k)
        tokens = _real(batch.ids_BT, mine.loader.pad_id)
        inputs = next(theirs.batches)
        their_tokens = int(inputs["attention_mask"].sum())
        began = time.process_time()
        mine.step(k)
        between = time.process_time()
        theirs.step(inputs)
        ended = time.process_time()
        if k >= WARM:
            spent["smollm3"].append((tokens, between - began))
            spent["trl"].append((their_tokens, ended - between))
    speeds = {name: _speed(values) for name, values in spent.items()}
    parts = [[_speed(values[i::5]) for i in range(5)] for values in spent.values()]
    ratios = sorted(a / b for a, b in zip(*parts, strict=True))
    return {
        "smollm3_tokens_per_second": speeds["smollm3"],
        "trl_tokens_per_second": speeds["trl"],
        "speedup": speeds["smollm3"] / speeds["trl"],
        "speedup_low": ratios[0],
        "speedup_median": statistics.median(ratios),
        "speedup_high": ratios[-1],
        "trainable_ours": sum(p.numel() for p in mine.trained.values()),
        "trainable_theirs": sum(p.numel() for p in theirs.trained),
    }


def _real(ids_BT: torch.Tensor, pad_id: int) -> int:
    """Tokens of the rows without the padding behind them."""
    columns = torch.arange(1, ids_BT.shape[1] + 1)
    return int(((ids_BT != pad_id) * columns).amax(1).sum())


def _speed(values: list[tuple[int, float]]) -> float:
    tokens, seconds = zip(*values, strict=True)
    return sum(tokens) / sum(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out = Path(__file__).parent / "results" / "finetuning.json"
    with tempfile.TemporaryDirectory() as folder:
        found = compare(asked.shape, asked.steps, Path(folder))
    print(asked.shape, {key: float(f"{value:.4g}") for key, value in found.items()})
    known = json.loads(out.read_text())["results"] if out.exists() else {}
    names = ("torch", "transformers", "trl", "peft")
    about = {
        "date": datetime.date.today().isoformat(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: metadata.version(name) for name in names},
        "steps": asked.steps,
    }
    out.write_text(json.dumps({"results": known | {asked.shape: about | found}}, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()
