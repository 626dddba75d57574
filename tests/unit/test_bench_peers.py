"""The arithmetic and the protocol of the comparison with other engines; no engine is run."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import peers
from benchmarks.peers import Bench, Worker, ratio, ratios, refusal, sweep, table
from benchmarks.work import ITEMS, Contender, Item

from smollm3.errors import UserError

VNNI = ("avx2", "avx512_vnni")
SLOW = {"name": "llama.cpp", "version": "1", "vnni": False}
FAST = {"name": "llama.cpp", "version": "1", "vnni": True}


def test_ratio_is_of_medians_with_the_rounds_around_it():
    found = ratio([10, 20, 30], [10, 5, 10], lower_is_better=False)
    assert found == {"median": 2.0, "min": 1.0, "max": 4.0}
    seconds = ratio([2, 4, 2], [4, 4, 8], lower_is_better=True)
    assert seconds == {"median": 2.0, "min": 1.0, "max": 4.0}


@pytest.mark.parametrize(
    ("flags", "info", "refused"),
    [
        (VNNI, SLOW, True),
        (VNNI, FAST, False),
        (VNNI, {"name": "OpenVINO", "version": "1"}, False),  # it chooses when it runs
        (("avx2",), SLOW, False),
    ],
)
def test_a_peer_that_leaves_vnni_unused_is_refused(flags, info, refused):
    assert (refusal(flags, info) is not None) == refused


def test_no_ratio_and_no_target_for_a_refused_peer():
    item = Item("work", "m", {"ours": Contender("ours"), "llama.cpp": Contender("llama.cpp", target=2.0)}, 8, lambda n: ("decode", {}))  # fmt: skip
    readings = {"ours": [30.0], "llama.cpp": [10.0]}
    found = ratios(item, readings, {"llama.cpp": SLOW}, VNNI)
    assert list(found["llama.cpp"]) == ["refused"]
    found = ratios(item, readings, {"llama.cpp": FAST}, VNNI)
    assert found["llama.cpp"]["met"]
    assert not ratios(item, readings | {"ours": [19.0]}, {"llama.cpp": FAST}, VNNI)["llama.cpp"][
        "met"
    ]


def test_sweep_finds_the_best_of_each_axis_and_keeps_what_it_tried():
    def reading(settings):
        return {512: 10.0, 256: 20.0, 128: 15.0}[settings["ubatch"]] / (1 + settings["flash"])

    best, log = sweep(reading, {"flash": (True, False), "ubatch": (512, 256, 128)})
    assert best == {"flash": False, "ubatch": 256}
    assert len(log) == 4  # no setting twice
    assert {"settings": {"flash": True, "ubatch": 512}, "rate": 5.0} in log


def test_sweep_survives_settings_that_the_engine_refuses():
    def reading(settings):
        if not settings["flash"]:
            raise RuntimeError("V cache quantization requires flash_attn")
        return 1.0

    best, log = sweep(reading, {"flash": (True, False)})
    assert best == {"flash": True}
    assert [entry["rate"] for entry in log] == [1.0, None]


def test_every_item_asks_what_its_engines_answer():
    workers = {n: (peers.HERE / "workers" / f).read_text() for n, f in peers.WORKERS.items()}
    for item in ITEMS.values():
        json.dumps(item.ask(0))
        assert next(iter(item.contenders)) == "ours"
        for contender in item.contenders.values():
            for method, _ in filter(None, (item.ask(0), item.prepare)):
                assert f"def {method}(" in workers[contender.engine]
            for axis in contender.axes:
                assert axis in (*peers.AXES, "threads")


def test_prompts_differ_between_rounds():
    for name in ("prefill-q4_0", "streams-q4_0"):
        asked = [json.dumps(ITEMS[name].ask(n)) for n in range(-3, 5)]
        assert len(set(asked)) == len(asked)


ENGINE = """
import sys, time
sys.path.insert(0, {folder!r})
from protocol import peak_memory, serve

class Fake:
    def info(self):
        return {{"name": "fake", "version": "1", "vnni": True}}
    def memory(self):
        return peak_memory()
    def open(self, model, context, threads, speed=10.0, **others):
        print("noise on standard output")
        self.speed = speed
        if others.get("flash") is False:
            self.speed *= 2
    def decode(self, prompts, tokens, **others):
        return self.speed + len(prompts)
    def prefill(self, ids):
        raise ValueError("no room")
"""


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    folder = str(peers.HERE / "workers")
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(ENGINE.format(folder=folder)) + "\nserve(Fake())\n")
    monkeypatch.setattr(peers, "WORKERS", dict.fromkeys(peers.WORKERS, str(script)))
    monkeypatch.setattr(peers, "PAUSE", 0)
    model = tmp_path / "m.gguf"
    model.write_bytes(b"12345678")
    monkeypatch.setattr(Bench, "path", lambda self, name: model)
    return Bench(Path(sys.executable), tmp_path, 2, VNNI, {})


ITEM = Item(
    "fake work",
    "m",
    {
        "ours": Contender("ours", {"speed": 31.0}),
        "llama.cpp": Contender("llama.cpp", target=1.5, axes=("flash", "threads")),
    },
    64,
    lambda n: ("decode", {"prompts": [[1]], "tokens": 4}),
    rounds=3,
)


def test_an_item_from_sweep_to_table(bench):
    record = bench.run("work", ITEM)
    assert record["readings"] == {"ours": [32.0] * 3, "llama.cpp": [21.0] * 3}
    assert record["settings"]["llama.cpp"] == {"flash": False, "threads": 2}
    assert record["ratios"]["llama.cpp"]["met"]
    assert record["bytes"] == 8
    assert record["memory"]["ours"]["VmHWM"] > 1 << 20
    tried = bench.sweeps["work"]["tried"]
    assert [entry["rate"] for entry in tried] == [11.0, 21.0, 21.0]
    text = table({"machine": peers.machine(2), "items": {"work": record}})
    assert "| fake work | 32 tok/s | llama.cpp 21 | 1.52 (1.52-1.52) | 1.5 met |" in text
    assert "Peak" not in text
    assert "Peak memory in fake work: ours 0." in table(
        {"machine": peers.machine(2), "items": {peers.OF_MEMORY: record}}
    )
    record["ratios"]["llama.cpp"] = {"refused": "no VNNI"}
    assert "none: no VNNI" in table({"machine": peers.machine(2), "items": {"work": record}})


def test_an_earlier_sweep_of_the_same_build_is_used(bench):
    key = ["1", peers.cpu_name(), 2]
    bench.sweeps["work"] = {"of": key, "best": {"flash": False}, "tried": []}
    assert bench.run("work", ITEM)["settings"]["llama.cpp"] == {"flash": False}
    bench.sweeps["work"] = {"of": ["0", *key[1:]], "best": {"flash": True}, "tried": []}
    assert bench.run("work", ITEM)["settings"]["llama.cpp"] == {"flash": False, "threads": 2}


def test_start_is_timed_from_the_process_on(bench):
    record = bench.run("start", replace(ITEM, fresh=True, contenders={"ours": Contender("ours"), "llama.cpp": Contender("llama.cpp")}))  # fmt: skip
    assert record["unit"] == "s"
    assert all(0.01 < seconds < 30 for seconds in record["readings"]["ours"])
    assert len(record["readings"]["ours"]) == 3


def test_a_worker_reports_its_errors_and_its_end(bench):
    with Worker("llama.cpp", Path(sys.executable)) as worker:
        with pytest.raises(RuntimeError, match="llama.cpp: prefill: ValueError: no room"):
            worker.ask("prefill", {"ids": []})
        assert worker.ask("info", {})["vnni"]
        worker.process.kill()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            worker.ask("info", {})


LLAMA_BENCH = """#!{python}
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["-m"] == "none":
    sys.exit("no such model")
rate = 100.0 if arguments["-p"] != "0" else 10.0
print("noise")
print(json.dumps([{{"avg_ts": rate * int(arguments["-rtr"]), "build_number": 7}}]))
"""


BATCHED = """#!{python}
import sys
assert "-rtr" in sys.argv and "1" not in sys.argv, sys.argv
def value(option):
    return sys.argv[sys.argv.index(option) + 1]
print("main: n_kv_max =", value("-c"), file=sys.stderr)
sizes = [value(option) for option in ("-npp", "-ntg", "-npl")]
print("|", *("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s"), "|", sep="|")
print("|" + " | ".join([*sizes, "99", "0.1", "500.5", "0.2", "44.5", "0.3", "90.1"]) + " |")
print("timings", file=sys.stderr)
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def llama_bench(tmp_path) -> Path:
    return program(tmp_path / "llama-bench", LLAMA_BENCH)


def test_streams_are_for_a_program_beside_it(llama_bench, tmp_path):
    item = ITEMS["streams-q4_0"]
    assert "ik" not in peers.with_peer(item, f"ik={llama_bench}").contenders
    program(tmp_path / "llama-batched-bench", BATCHED)
    item = peers.with_peer(item, f"ik={llama_bench},-rtr,1,-fa,0")
    contender = item.contenders["ik"]
    with Worker(contender.engine, Path("unused")) as worker:
        worker.ask("open", {"model": "m", "context": 64, "threads": 2, **contender.settings})
        assert peers.asked(worker, item, contender, 0) == 44.5


def test_any_llama_bench_can_be_a_peer(llama_bench, tmp_path):
    joined = {n: peers.with_peer(i, f"ik={llama_bench},-rtr,3") for n, i in ITEMS.items()}
    assert {n for n, i in joined.items() if "ik" in i.contenders} == {
        n for n in ITEMS if n.startswith(("prefill-", "decode-", "busy-"))
    }
    assert (
        joined["busy-q4_0"].contenders["ik"].beside == ITEMS["busy-q4_0"].contenders["ours"].beside
    )
    item = joined["decode-q4_0"]
    contender = item.contenders["ik"]
    with Worker(contender.engine, Path("unused")) as worker:
        settings = {"model": "m", "context": 64, "threads": 2}
        worker.ask("open", {**settings, **contender.settings})
        assert peers.asked(worker, item, contender, 0) == 30
        assert worker.ask("prefill", {"ids": [1, 2]}) == 300
        assert worker.ask("info", {})["version"] == "7"
        worker.ask("open", {**settings, "model": "none", **contender.settings})
        with pytest.raises(RuntimeError, match="no such model"):
            worker.ask("prefill", {"ids": [1]})


@pytest.mark.parametrize(
    ("spec", "problem"), [("ik", "is not NAME"), ("ik=/none", "no such program")]
)
def test_a_peer_that_cannot_be_is_one_line(spec, problem):
    with pytest.raises(UserError, match=problem):
        peers.with_peer(ITEMS["decode-q4_0"], spec)


@pytest.mark.parametrize(
    ("flags", "name"),
    [(VNNI, "avx512"), (("avx2", "avx_vnni"), "avxvnni"), (("avx2",), "avx2")],
)
def test_results_are_kept_by_family(flags, name):
    assert peers.family(flags) == name


def test_a_larger_processor_can_be_held_to_avx2(monkeypatch):
    """Our kernels are then, so a peer is refused for no instruction that they may not use."""
    monkeypatch.setattr(peers, "cpu_fields", lambda: {"flags": " ".join(VNNI), "model name": "X"})
    monkeypatch.delenv("SMOLLM3_ISA", raising=False)
    assert (peers.family(peers.cpu_flags()), peers.cpu_name()) == ("avx512", "X")
    monkeypatch.setenv("SMOLLM3_ISA", "avx2")
    assert (peers.family(peers.cpu_flags()), peers.cpu_name()) == ("avx2", "X held to avx2")
    assert refusal(peers.cpu_flags(), {"name": "theirs", "vnni": False}) is None


def test_what_runs_beside_a_reading_runs_as_long_as_it(monkeypatch):
    running: list[Loop] = []

    class Loop:
        def __init__(self, command):
            running.append(self)

        def kill(self):
            running.remove(self)

        def wait(self):
            pass

    class Fails:
        def ask(self, method, arguments):
            assert len(running) == 2
            raise RuntimeError("the process ended")

    monkeypatch.setattr(peers.subprocess, "Popen", Loop)
    with pytest.raises(RuntimeError, match="ended"):
        peers.asked(Fails(), ITEMS["busy-q4_0"], Contender("ours", beside=2), 0)
    assert not running


def test_without_the_peers_one_line_says_how_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match="make peers"):
        peers.main(["--only", "decode-135m", "--peers-python", str(tmp_path / "python")])
