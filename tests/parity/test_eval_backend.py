"""Evaluation beside lm-evaluation-harness's own Hugging Face backend, request by request.

With invented data always; with real data sets and a real model where SMOLLM3_EVAL_DATA names a
folder of them (SMOLLM3_EVAL_ITEMS of each kind of task, 300 if it does not say). `-s` shows figures.
"""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.eval_data import Watching, data_folder, text
from tests.support.noise import save_noise

from smollm3.checkpoint import load_model, load_tokenizer, save_model
from smollm3.eval.harness import Wanted, load_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.local import data_sets
from smollm3.eval.target import Ask, EngineTarget, Prompt, Settings
from smollm3.infer import load_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

DATA, MODEL = "SMOLLM3_EVAL_DATA", "smollm2-135m"
BOUND = 1e-3  # of a log-probability, in float32
WINDOW = 256  # tokens, of texts that are read in windows
ANSWER = 24  # tokens
# Not winogrande beside winogrande_cloze: where two requests are the same tokens, cut at other places,
# the harness gives the shorter continuation the log-probabilities of the longer one's beginning.
REAL = {
    "options": [
        "arc_easy", "arc_challenge", "hellaswag", "piqa", "openbookqa", "boolq", "winogrande",
        "commonsense_qa_cloze", "mmlu_astronomy_continuation", "truthfulqa_mc2", "xcopa_it", "arc_de",
    ],
    "letters": ["commonsense_qa", "mmlu_astronomy", "belebele_eng_Latn", "belebele_deu_Latn"],
    "answers": ["gsm8k", "nq_open", "triviaqa", "mgsm_direct_es"],
    "options, chat": ["arc_easy", "piqa"],
    "answers, chat": ["ifeval", "gsm8k"],
}  # fmt: skip
INVENTED = {
    "options": ["hellaswag", "piqa"],
    "answers": ["gsm8k"],
    "options, chat": ["hellaswag", "piqa"],
    "answers, chat": ["gsm8k"],
}
# SmolLM3's own template names the day and wants to know whether to think.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Both:
    """One model in two implementations."""

    def __init__(self, folder, data, engines, items, work):
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.folder, self.data, self.items, self.work = folder, data, items, work
        self.engines = {e: load_engine(folder, engine=e, dtype="float32") for e in engines}
        self.peer = self.peer_of(HFLM)
        self.windows = self.peer_of(HFLM, max_length=WINDOW)

    def peer_of(self, kind, **options):
        # Its log_softmax in float32 adds up 49,152 exponentials: too much by 7.6e-6 a token, always
        # in one direction, which was 1.2e-3 of an option of 152 tokens (against all in float64).
        return kind(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            batch_size=8,
            softmax_dtype=torch.float64,
            **options,
        )

    def close(self):
        for engine in self.engines.values():
            engine.close()

    def samples(self, lm, names, settings):
        """task -> samples."""
        from lm_eval.evaluator import evaluate

        wanted = Wanted(names, few_shot=0, data=self.data)
        with data_sets(self.data) as missing:
            tasks = load_tasks(wanted, None, settings, missing, {})
            for task in tasks["tasks"].values():
                if task.OUTPUT_TYPE == "generate_until":
                    task.set_config("generation_kwargs", {"max_gen_toks": ANSWER}, update=True)
            return evaluate(
                lm,
                tasks,
                limit=-(-self.items // len(names)),
                bootstrap_iters=0,
                apply_chat_template=settings.chat,
                fewshot_as_multiturn=settings.chat,
                log_samples=True,
            )["samples"]

    def ours(self, engine, settings):
        from smollm3.eval.adapter import Adapter

        target = EngineTarget(self.engines[engine], "ours", settings)
        items = self.work / f"{engine}-{settings.chat}.jsonl"
        items.unlink(missing_ok=True)
        return Adapter(target, Journal(items, {}), settings, Watching())


def best(values):
    return max(range(len(values)), key=values.__getitem__)


def compare_options(mine, theirs, figures):
    """Of an item: each option's log-probability, and which is the best, bare and by length."""
    a, b = ([value for ((value, _),) in sample["resps"]] for sample in (mine, theirs))
    lengths = [len(argument[1]) for argument in theirs["arguments"]]
    figures["items"] += 1
    figures["options"] += len(a)
    figures["largest difference"] = max(
        figures["largest difference"], *(abs(x - y) for x, y in zip(a, b, strict=True))
    )
    for scale in ([1] * len(a), lengths):
        x, y = ([v / s for v, s in zip(values, scale, strict=True)] for values in (a, b))
        if best(x) != best(y):
            figures["other predictions"] += 1
            first, second = sorted(y, reverse=True)[:2]
            assert first - second < 2 * BOUND, (mine["doc"], a, b)


def compare_answers(mine, theirs, engine, settings, figures):
    """Of an item: the text; where it differs, both next tokens must be as likely as each other."""
    (a,), (b,) = mine["resps"][0], theirs["resps"][0]
    if settings.chat:  # blanks around an answer are none of it
        a, b = a.strip(), b.strip()
    figures["items"] += 1
    figures["tokens"] += len(engine.tokenizer.encode(b))
    if a == b:
        return
    figures["other texts"] += 1
    target = EngineTarget(engine, "ours", settings)
    said = mine["arguments"][0][0]
    prompt = Prompt(said)
    if settings.chat:
        said = json.loads(said)
        prompt = Prompt(messages=tuple(said["messages"]), prefill=said["prefill"])
    before = target.request(Ask(prompt, max_tokens=ANSWER)).ids(engine.tokenizer)
    x, y = engine.tokenizer.encode(a), engine.tokenizer.encode(b)
    same = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), None)
    assert same is not None, (a, b)
    likely = [engine.score([*before, *ids[: same + 1]], len(before) + same)[0] for ids in (x, y)]
    assert abs(likely[0] - likely[1]) < 2 * BOUND, (a, b, likely)


def compare(both, kind, names):
    settings = Settings(chat="chat" in kind)
    theirs = both.samples(both.peer, names, settings)
    for engine in both.engines:
        figures = {"items": 0, "largest difference": 0.0, "options": 0, "other predictions": 0}
        if "answers" in kind:
            figures = {"items": 0, "tokens": 0, "other texts": 0}
        mine = both.samples(both.ours(engine, settings), names, settings)
        assert mine.keys() == theirs.keys()
        for task in mine:
            kept = {s["doc_id"]: s for s in mine[task]}
            other = {s["doc_id"]: s for s in theirs[task]}
            assert kept.keys() == other.keys()
            for key, sample in kept.items():
                if "answers" in kind:
                    compare_answers(sample, other[key], both.engines[engine], settings, figures)
                else:
                    compare_options(sample, other[key], figures)
        print(f"\n{kind}, {engine}: {json.dumps(figures)}")
        assert figures["items"] >= both.items
        assert figures.get("largest difference", 0.0) < BOUND
        assert figures.get("other texts", 0) <= figures["items"] // 20


def short_context(folder, to):
    """The same model with a context of WINDOW tokens."""
    shutil.copytree(folder, to, copy_function=os.link)
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    return to


def compare_windows(both, texts):
    """Whole texts, longer than the context that both are given."""
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    theirs = both.windows.loglikelihood_rolling(asked, disable_tqdm=True)
    folder = short_context(both.folder, both.work / "short")
    for engine in both.engines:
        with load_engine(folder, engine=engine, dtype="float32") as short:
            tokens = [len(short.tokenizer.encode(text)) for text in texts]
            target = EngineTarget(short, "ours", Settings())
            mine = [target.score_all(text).result() for text in texts]
        differences = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
        # Of hundreds of tokens the last bits add up.
        by_token = max(d / n for d, n in zip(differences, tokens, strict=True))
        found = {"texts": len(texts), "tokens": sum(tokens), "largest difference": max(differences)}
        found["by token"] = by_token
        print(f"\nwhole texts, {engine}: {json.dumps(found)}")
        assert max(tokens) > 2 * WINDOW > min(tokens)
        assert by_token < BOUND / 10


@pytest.fixture(scope="module")
def invented(tokenizer, tmp_path_factory):
    pytest.importorskip("lm_eval.models.huggingface")
    work = tmp_path_factory.mktemp("invented")
    save_noise(work / "model", tokenizer.with_template(CHAT))
    both = Both(work / "model", data_folder(work / "data"), ["torch", "native"], 4, work)
    yield both
    both.close()


@pytest.mark.parametrize("kind", INVENTED)
def test_invented_items(invented, kind):
    compare(invented, kind, INVENTED[kind])


def test_invented_texts(invented):
    # No period: the harness takes windows of the same tokens for one, and their ends for its begin.
    rng = random.Random(0)
    compare_windows(invented, [text(rng, 200), text(rng, 30), "a"])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if DATA not in os.environ:
        pytest.skip(f"{DATA} names no folder of data sets")
    work = tmp_path_factory.mktemp("real")
    save_model(load_model(MODEL), load_tokenizer(MODEL), work / "model")
    items = int(os.environ.get("SMOLLM3_EVAL_ITEMS", "300"))
    both = Both(work / "model", Path(os.environ[DATA]), ["torch", "native"], items, work)
    yield both
    both.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", REAL)
def test_real_items(real, kind):
    compare(real, kind, REAL[kind])


@pytest.mark.slow
def test_real_texts(real):
    file = real.data / "squad/v1_validation_1000.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as rows:
        passages = list(dict.fromkeys(json.loads(line)["context"] for line in rows))
    compare_windows(real, [*passages[: 1 + real.items // 10], "\n\n".join(passages[:8])])
