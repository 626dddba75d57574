"""Does checking a teacher's answers pay? Two copies of a model are trained on what it wrote itself.

    python benchmarks/synth_kept.py --seeds 6 --out /tmp/synth-kept

For each seed: a model of 100 thousand parameters learns to add digits step by step and is stopped
while it still errs; it then answers other sums by sampling (a synth stage whose teacher is a stage
of the recipe). One copy is trained on the answers that the check `answer` has kept, one on all, for
as many steps. Both are asked the same held-out sums, greedily. Printed are the shares of right
answers, the mean difference over the seeds with its t interval, and of the held-out sums that one
copy alone gets right the share of the first copy with its exact interval: above 1/2 is a difference
above zero. It needs scipy (extra `eval`).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import torch
from scipy import stats

from smollm3.files import write_atomic
from smollm3.infer import SamplingParams, load_engine
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.synth.run import ANSWERS
from smollm3.turn import Request, wait_all

SYSTEM = {"role": "system", "content": "/system_override Add."}
MAX_TOKENS = 64
RECIPE = """
name: kept
seed: {seed}
model: {{layers: 3, hidden: 64, heads: 4, kv_heads: 2, ffn: 128, rope_theta: 1e4, init_std: 0.05}}
sources:
  lessons: {{kind: jsonl, files: ['{folder}/lessons.jsonl'], format: chat}}
  questions: {{kind: jsonl, files: ['{folder}/questions.jsonl'], format: chat}}
  right: {{kind: synth, from: checked, format: chat}}
  all: {{kind: synth, from: unchecked, format: chat}}
stages:
  tokenizer: {{kind: tokenizer, vocab: 320, mixture: {{lessons: 1}}, characters: 1e5}}
  base: &train
    kind: train
    mixture: {{lessons: 1}}
    loss: assistant
    packing: bfd
    context: 128
    batch: 8
    steps: {base}
    lr: {{peak: 3e-3, warmup: 20}}
  checked: &ask
    kind: synth
    teacher: {{model: base, temperature: 1, top_p: 1, max_tokens: {max_tokens}}}
    prompts: [questions]
    modes: [think]
    checks: [answer]
  unchecked: {{<<: *ask, checks: []}}
  on_right: &copy
    <<: *train
    from: base
    mixture: {{right: 1}}
    steps: {more}
    lr: {{peak: 5e-4, warmup: 10, decay: linear}}
  on_all: {{<<: *copy, mixture: {{all: 1}}}}
"""


def write_sums(folder: Path, seed: int, lessons: int, questions: int, held_out: int) -> list[dict]:
    """Sums of four to six digits, all different; what is held out is returned and lies nowhere."""
    rng = random.Random(seed)
    drawn: dict[str, list[int]] = {}
    while len(drawn) < lessons + questions + held_out:
        terms = [rng.randint(1, 9) for _ in range(rng.randint(4, 6))]
        drawn["+".join(map(str, terms)) + "?"] = terms
    rows = [row(question, terms) for question, terms in drawn.items()]
    for name, part in (
        ("lessons", rows[:lessons]),
        ("questions", rows[lessons : lessons + questions]),
    ):
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(r) + "\n" for r in part))
    return rows[lessons + questions :]


def row(question: str, terms: list[int]) -> dict:
    totals = [sum(terms[:n]) for n in range(1, len(terms) + 1)]
    answer = {
        "role": "assistant",
        "reasoning_content": " ".join(map(str, totals)),
        "content": str(totals[-1]),
    }
    return {
        "messages": [SYSTEM, {"role": "user", "content": question}, answer],
        "chat_template_kwargs": {"enable_thinking": True},
        "answer": str(totals[-1]),
    }


def right(model: Path, rows: list[dict], temperature: float = 0.0) -> list[bool]:
    """Of each sum, whether the model's answer is the sum."""
    with load_engine(model, speculation=False) as engine:
        params = SamplingParams(temperature=temperature, top_p=1, max_tokens=MAX_TOKENS)
        requests = [Request(r["messages"][:-1], params=params) for r in rows]
        with engine.together():
            replies = [request.submit(engine) for request in requests]
        wait_all(replies)
        said = [reply.result().content.strip() for reply in replies]
    return [text == r["answer"] for text, r in zip(said, rows, strict=True)]


def one_seed(folder: Path, seed: int, given: argparse.Namespace) -> tuple[list[bool], list[bool]]:
    """What both copies get right of the held-out sums."""
    held_out = write_sums(folder, seed, given.lessons, given.questions, given.held_out)
    steps = {"base": given.base_steps, "more": given.steps}
    text = RECIPE.format(folder=folder, seed=seed, max_tokens=MAX_TOKENS, **steps)
    quiet = Events(*(lambda *_: None for _ in range(5)))
    run = Run(load_recipe_text(text, "synth_kept"), folder / "run", quiet)
    for stage in ("tokenizer", "base", "checked"):
        run.execute(only=stage)
    # The same questions by the same teacher: what was answered is not asked again.
    (folder / "run" / ".work" / "unchecked").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "run" / "checked" / ANSWERS, folder / "run" / ".work" / "unchecked")
    run.execute()
    kept, asked = (
        json.loads((folder / "run" / stage / "stage.json").read_text())["metrics"]["kept"]
        for stage in ("checked", "unchecked")
    )
    models = ("base", "on_right", "on_all")
    found = {name: right(folder / "run" / name, held_out) for name in models}
    shares = ", ".join(f"{name} {100 * sum(hits) / len(hits):.1f}%" for name, hits in found.items())
    print(f"seed {seed}: {kept} of {asked} answers kept; held-out sums right: {shares}", flush=True)
    return found["on_right"], found["on_all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--lessons", type=int, default=4000)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--base-steps", type=int, default=450)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    pairs = [one_seed(given.out / str(seed), seed, given) for seed in range(given.seeds)]
    gains = [(sum(a) - sum(b)) / len(a) for a, b in pairs]
    mean, error = sum(gains) / len(gains), stats.sem(gains)
    low, high = stats.t.interval(0.95, len(gains) - 1, mean, error)
    print(f"difference over {len(gains)} seeds: {mean:+.3f}, t interval {low:+.3f} to {high:+.3f}")
    flat = [pair for a, b in pairs for pair in zip(a, b, strict=True)]
    better, worse = flat.count((True, False)), flat.count((False, True))
    exact = stats.binomtest(better, better + worse).proportion_ci(method="exact")
    print(
        f"right on checked data alone {better}, on unchecked alone {worse}, of {len(flat)}: share "
        f"{better / (better + worse):.3f}, exact interval {exact.low:.3f} to {exact.high:.3f}"
    )
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
