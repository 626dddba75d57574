"""Ours, llama.cpp and OpenVINO GenAI on the same work, interleaved: medians, ratios, targets.

    make peers       builds the peers natively in .venv-peers (benchmarks/peers-requirements.txt)
    python -m benchmarks.peers [--only ITEM ...] [--quick]    writes benchmarks/results/peers-*.json
    python -m benchmarks.peers --table                        prints them as Markdown
    python -m benchmarks.peers --peer ik=~/ik_llama.cpp/build/bin/llama-bench,-rtr,1

Every engine is a process of its own (benchmarks/workers). They take turns, A B A B, so that what
the neighbours of a rented machine do meets all of them; a ratio is one of medians, with the
smallest and largest of the single rounds. llama.cpp runs at the best of its own settings, found by
a sweep that is kept in the results. Bytes are counted as the file's, so packing weights otherwise
cannot raise a figure. OpenVINO does not know SmolLM3: it runs a twin of the same sizes, a Llama.
With --peer any program that takes llama-bench's options joins, with flags of the user's choice.
Results are kept for each family of processors; SMOLLM3_ISA=avx2 makes a larger processor one of
AVX2, beside peers that were built for that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.work import ITEMS, Asked, Contender, Item

from smollm3.bench.shapes import make_shape
from smollm3.checkpoint import locate
from smollm3.errors import UserError
from smollm3.files import read_json, write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"  # peers-FAMILY.json
SHAPES = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "smollm3" / "shapes"
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
WORKERS = {
    "ours": "ours.py",
    "llama.cpp": "llamacpp.py",
    "OpenVINO": "genai.py",  # not openvino.py, which would hide the package
    "plain read": "plainread.py",
    "llama-bench": "llamabench.py",
}
OURS = (
    "ours",
    "plain read",
    "llama-bench",
)  # these run in this environment, the others in the peers'
# llama.cpp's settings, one axis after the other, the best value of each kept; the first is where
# the search starts. Threads are added from what the machine has.
AXES: dict[str, Sequence[Any]] = {
    "flash": (True, False),
    "repack": (True, False),
    "ubatch": (512, 256, 128),
    "unified": (False, True),
}
SWEEP_READINGS = 2  # of each setting; the better counts
OF_MEMORY = "streams-q4_0"  # the item whose peak memory is told below the table
PAUSE = 0.3  # seconds between two engines' turns: threads that wait by spinning go to sleep


class Worker:
    """An engine in its process."""

    def __init__(self, engine: str, python: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        environment.pop("OMP_NUM_THREADS", None)  # each is told its threads
        script = HERE / "workers" / WORKERS[engine]
        self.engine = engine
        self.process = subprocess.Popen(
            [sys.executable if engine in OURS else python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the worker's method returns; RuntimeError where it raises or the process ends."""
        to, back = self.process.stdin, self.process.stdout
        assert to
        assert back
        to.write(json.dumps([method, arguments]) + "\n")
        to.flush()
        line = back.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.engine}: {method}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        self.process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def asked(worker: Worker, item: Item, contender: Contender, n: int) -> float:
    """The reading of round n."""
    method, arguments = item.ask(n)
    with busy(contender.beside):
        rate: float = worker.ask(method, {**arguments, **contender.arguments})
    return rate


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that only use their core."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def sweep(
    reading: Callable[[dict[str, Any]], float], axes: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best settings, and every one tried with its rate (None: the engine refuses it). Axis by
    axis, all others at their best so far."""
    log: list[dict[str, Any]] = []

    def rate(settings: dict[str, Any]) -> float:
        for entry in log:
            if entry["settings"] == settings:
                return entry["rate"] or 0.0
        try:
            found: float | None = reading(settings)
        except RuntimeError:
            found = None
        log.append({"settings": dict(settings), "rate": found})
        return found or 0.0

    best = {axis: values[0] for axis, values in axes.items()}
    for axis, values in axes.items():
        best[axis] = max(values, key=lambda value: rate({**best, axis: value}))
    return best, log


def refusal(cpu_flags: Sequence[str], info: Mapping[str, Any]) -> str | None:
    """Why a ratio to this peer would mean nothing: it leaves the CPU's int8 products unused."""
    if "avx512_vnni" in cpu_flags and info.get("vnni") is False:
        return f"{info['name']} was built without AVX512-VNNI, which this CPU has"
    return None


def ratio(
    ours: Sequence[float], theirs: Sequence[float], lower_is_better: bool
) -> dict[str, float]:
    """Ours over theirs: of the medians, and the smallest and largest of the single rounds; above 1
    ours is better."""

    def over(a: float, b: float) -> float:
        return b / a if lower_is_better else a / b

    rounds = [over(a, b) for a, b in zip(ours, theirs, strict=True)]
    median = over(statistics.median(ours), statistics.median(theirs))
    return {"median": median, "min": min(rounds), "max": max(rounds)}


@dataclass
class Bench:
    """What all items share."""

    peers_python: Path
    shapes: Path
    threads: int
    flags: Sequence[str]
    sweeps: dict[str, Any]
    quick: bool = False

    def path(self, model: str) -> Path:
        return locate(model) if ":" not in model else make_shape(model, self.shapes)

    def opened(self, item: Item, contender: Contender, settings: Mapping[str, Any]) -> Asked:
        path = self.path(contender.model or item.model).absolute()
        own = {**contender.settings, **settings}
        return "open", {"model": str(path), "context": item.context, "threads": self.threads, **own}

    def settings(self, name: str, item: Item, contender: Contender, worker: Worker) -> Any:
        """The best of the peer's own settings: those of an earlier sweep of the same build on the
        same CPU, or of one made now and kept in `sweeps`."""
        if not contender.axes:
            return {}
        key = [worker.ask("info", {})["version"], cpu_name(), self.threads]
        known = self.sweeps.get(name)
        if known and known["of"] == key:
            return known["best"]
        if self.quick:
            return {}
        axes = {axis: AXES[axis] for axis in contender.axes if axis != "threads"}
        if "threads" in contender.axes:
            axes["threads"] = range(self.threads, 0, -1)

        def reading(settings: dict[str, Any]) -> float:
            worker.ask(*self.opened(item, contender, settings))
            if item.prepare:
                worker.ask(*item.prepare)
            return max(asked(worker, item, contender, -2 - n) for n in range(SWEEP_READINGS))

        best, log = sweep(reading, axes)
        self.sweeps[name] = {"of": key, "best": best, "tried": log}
        return best

    def sweep(self, name: str, item: Item) -> None:
        """Look for the peers' best settings, also where some are known."""
        self.sweeps.pop(name, None)
        for contender in item.contenders.values():
            if contender.axes:
                with Worker(contender.engine, self.peers_python) as worker:
                    self.settings(name, item, contender, worker)

    def run(self, name: str, item: Item) -> dict[str, Any]:
        """The item's record: readings, medians, ratios, settings, versions, memory."""
        readings = self._fresh(item) if item.fresh else None
        with ExitStack() as stack:
            workers = {
                column: stack.enter_context(Worker(c.engine, self.peers_python))
                for column, c in item.contenders.items()
            }
            settings = {}
            for column, worker in workers.items():
                contender = item.contenders[column]
                settings[column] = self.settings(name, item, contender, worker)
                worker.ask(*self.opened(item, contender, settings[column]))
                if item.prepare:
                    worker.ask(*item.prepare)
                asked(worker, item, contender, -1)  # warm
            readings = readings or self._interleaved(item, workers)
            infos = {column: worker.ask("info", {}) for column, worker in workers.items()}
            memory = {column: worker.ask("memory", {}) for column, worker in workers.items()}
        return {
            "title": item.title,
            "date": datetime.date.today().isoformat(),
            "cpu": cpu_name(),
            "model": item.model,
            "bytes": self.path(item.model).stat().st_size,
            "unit": "s" if item.fresh else "tok/s",
            "readings": readings,
            "medians": {column: statistics.median(r) for column, r in readings.items()},
            "ratios": ratios(item, readings, infos, self.flags),
            "settings": {
                c: {k: v for k, v in item.contenders[c].settings.items() if k != "program"} | own
                for c, own in settings.items()
            },
            "versions": infos,
            "memory": memory,
        }

    def _interleaved(self, item: Item, workers: Mapping[str, Worker]) -> dict[str, list[float]]:
        readings: dict[str, list[float]] = {column: [] for column in workers}
        for n in range(self._rounds(item)):
            for column, worker in workers.items():
                time.sleep(PAUSE)
                readings[column].append(asked(worker, item, item.contenders[column], n))
        return readings

    def _rounds(self, item: Item) -> int:
        return 1 if self.quick else item.rounds

    def _fresh(self, item: Item) -> dict[str, list[float]]:
        readings: dict[str, list[float]] = {column: [] for column in item.contenders}
        for n in range(-1, self._rounds(item)):  # the first fills caches
            for column, contender in item.contenders.items():
                time.sleep(PAUSE)
                opened = self.opened(item, contender, {})
                began = time.perf_counter()
                with Worker(contender.engine, self.peers_python) as worker:
                    worker.ask(*opened)
                    asked(worker, item, contender, n)
                    seconds = time.perf_counter() - began
                readings[column] += [seconds] * (n >= 0)
        return readings


def ratios(
    item: Item,
    readings: Mapping[str, Sequence[float]],
    infos: Mapping[str, Mapping[str, Any]],
    flags: Sequence[str],
) -> dict[str, Any]:
    """Of each other column: ours over it, its target and whether that is met; or why there is no
    ratio."""
    found: dict[str, Any] = {}
    for column, contender in item.contenders.items():
        if column == "ours":
            continue
        if reason := refusal(flags, infos[column]):
            found[column] = {"refused": reason}
            continue
        found[column] = ratio(readings["ours"], readings[column], item.fresh)
        if contender.target is not None:
            met = found[column]["median"] >= contender.target
            found[column] |= {"target": contender.target, "met": met}
    return found


def cpu_flags() -> list[str]:
    """Of this processor; where SMOLLM3_ISA holds our kernels to AVX2, those of one that has no
    more, for peers that were built so."""
    flags = cpu_fields().get("flags", "").split()
    if os.environ.get("SMOLLM3_ISA") != "avx2":
        return flags
    return [flag for flag in flags if not flag.startswith(("avx512", "avx_vnni"))]


def cpu_fields() -> dict[str, str]:
    """Of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def family(flags: Sequence[str]) -> str:
    """Of processors that run the same kernels here: what results are kept by."""
    for name, flag in (("avx512", "avx512_vnni"), ("avxvnni", "avx_vnni"), ("avx2", "avx2")):
        if flag in flags:
            return name
    return platform.machine()


def with_peer(item: Item, spec: str) -> Item:
    """The item with the contender of NAME=LLAMA_BENCH[,FLAG...], if llama-bench can do its work."""
    name, _, rest = spec.partition("=")
    program, *flags = rest.split(",")
    if not name or not program:
        raise UserError(f"--peer: {spec!r} is not NAME=LLAMA_BENCH[,FLAG...]")
    program = str(Path(program).expanduser().absolute())
    if not os.access(program, os.X_OK):
        raise UserError(f"--peer: {program}: no such program")
    method, arguments = item.ask(0)
    batched = Path(program).with_name("llama-batched-bench").exists()
    able = method == "prefill" or (
        method == "decode" and (batched or len(arguments["prompts"]) == 1)
    )
    if item.fresh or not able or "llama.cpp" not in item.contenders:
        return item
    beside = item.contenders["llama.cpp"].beside
    contender = Contender("llama-bench", {"program": program, "flags": flags}, beside=beside)
    return replace(item, contenders={**item.contenders, name: contender})


def cpu_name() -> str:
    name = cpu_fields().get("model name", platform.machine())
    isa = os.environ.get("SMOLLM3_ISA")
    return f"{name} held to {isa}" if isa else name


def machine(threads: int) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| work | ours | others | ratio (rounds) | target |", "|---|---|---|---|---|"]
    for record in results["items"].values():
        unit = record["unit"]
        for n, (column, found) in enumerate(record["ratios"].items()):
            title = record["title"] if n == 0 else ""
            ours = f"{_number(record['medians']['ours'])} {unit}" if n == 0 else ""
            other = f"{column} {_number(record['medians'][column])}"
            if column == "plain read":
                other += f" ({record['medians'][column] * record['bytes'] / 1e9:.1f} GB/s)"
            if "refused" in found:
                lines.append(f"| {title} | {ours} | {other} | none: {found['refused']} | |")
                continue
            spread = f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})"
            target = ""
            if "target" in found:
                target = f"{found['target']:g} {'met' if found['met'] else 'missed'}"
            lines.append(f"| {title} | {ours} | {other} | {spread} | {target} |")
    cpus = ", ".join(sorted({record["cpu"] for record in results["items"].values()}))
    lines.append(f"\n{cpus}; {results['machine']['threads']} threads. {_versions(results)}")
    if record := results["items"].get(OF_MEMORY):
        peaks = [f"{column} {m['VmHWM'] / 1e9:.1f} GB" for column, m in record["memory"].items()]
        lines.append(f"Peak memory in {record['title']}: {', '.join(peaks)}.")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _versions(results: Mapping[str, Any]) -> str:
    found = {
        f"{info['name']} {info['version']} ({record['date']})"
        for record in results["items"].values()
        for info in record["versions"].values()
    }
    return ", ".join(sorted(found)) + "."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=ITEMS, metavar="ITEM", default=None,
                        help=f"one of {', '.join(ITEMS)}; may be repeated")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round, no sweep, nothing kept")
    parser.add_argument("--sweep", action="store_true", help="only look for the peers' settings")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=LLAMA_BENCH[,FLAG...]",
                        help="a program with llama-bench's options, and flags for it; may be "
                        "repeated")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument("--shapes", type=Path, default=SHAPES, help="folder of the 3B files")
    args = parser.parse_args(arguments)
    if args.table:
        for path in sorted(RESULTS.glob("peers-*.json")):
            print(table(read_json(path)), end="\n\n")
        return
    flags = cpu_flags()
    file = RESULTS / f"peers-{family(flags)}.json"
    results = {"machine": {}, "items": {}, "sweeps": {}}
    if file.exists():
        results = read_json(file)
    if not args.peers_python.exists():
        raise SystemExit(f"{args.peers_python}: no such file; run make peers, or --peers-python")
    bench = Bench(
        args.peers_python,
        args.shapes,
        args.threads,
        flags,
        results["sweeps"],
        args.quick,
    )
    for name in args.only or ITEMS:
        item = ITEMS[name]
        for peer in args.peer:
            item = with_peer(item, peer)
        if args.sweep:
            bench.sweep(name, item)
            print(name, json.dumps(results["sweeps"].get(name), indent=2), flush=True)
        else:
            results["items"][name] = bench.run(name, item)
            results["machine"] = machine(args.threads)
            print(table({**results, "items": {name: results["items"][name]}}), flush=True)
        if not args.quick:
            results["items"] = {n: results["items"][n] for n in ITEMS if n in results["items"]}
            write_json(file, results)


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        raise SystemExit(str(e)) from None
