"""A recipe for somebody's own data: looked at, planned for the hardware at hand, with reasons.

Everything that is decided here is a line of the recipe; nothing later knows that it was not written
by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from smollm3 import checkpoint
from smollm3.chat import default_template
from smollm3.checkpoint.gguf.write import architecture
from smollm3.config.yaml import parse_yaml
from smollm3.errors import UserError
from smollm3.eval.panel import TASKS, missing, questions
from smollm3.infer.backends.memory import free_bytes
from smollm3.machine import has_bfloat16_units
from smollm3.model import ModelConfig
from smollm3.plan import StageCost, stage_costs
from smollm3.portable import usable_cpus
from smollm3.recipe.edit import Path as Key
from smollm3.recipe.edit import RecipeText, flow
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.own_data import Looked, look
from smollm3.recipe.schema import ChatIdentity, Recipe
from smollm3.tokenizer import Tokenizer
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS
from smollm3.train.memory import trained_parameters, training_memory
from smollm3.train.spec import Adapter, Recompute, TrainStage
from smollm3.units import count, duration, size

FILE = "finetune.yaml"
ADAPTERS = ("auto", "lora", "rslora", "dora", "qlora", "full")
RANK = 16
LONGEST = 480.0  # seconds of training on a CPU that are planned for, where nobody says otherwise
STEPS = 120  # that a small set of data should at least come to
SHARE = 0.8  # of the free memory that is planned for


@dataclass(frozen=True)
class Wish:
    """What the command line says. pairs: of preferences, after the conversations. context: tokens
    in a row. adapter: one of ADAPTERS. overrides: key.path=value, each a line of the recipe."""

    model: str
    data: str
    pairs: str | None = None
    context: int | None = None
    adapter: str = "auto"
    overrides: Sequence[str] = ()

    @property
    def base(self) -> str:
        """The model as a recipe says it, where a bare word is a stage."""
        bare = "/" not in self.model and Path(self.model).exists()
        return f"./{self.model}" if bare else self.model

    @property
    def name(self) -> str:
        """Of the recipe, and of its run's folder: the data's."""
        stem = Path(self.data.rstrip("/")).name.partition(".")[0]
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
        return kept.strip("-_") or "finetune"


@dataclass(frozen=True)
class Decision:
    """One line of the recipe: what, and why; said as it stands there."""

    key: Key
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.key))}: {flow(self.value)}  # {self.why}"


@dataclass(frozen=True)
class Machine:
    """What trains here. memory: bytes that a plan may use. half: whether bfloat16 pays. host: bytes
    that are free beside a GPU."""

    name: str
    memory: int
    half: bool
    threads: int
    is_cpu: bool
    host: int = 0

    @classmethod
    def here(cls) -> Machine:
        free, cpus = free_bytes(torch.device("cpu")), usable_cpus()
        if torch.cuda.is_available():
            card, memory = torch.cuda.get_device_name(), free_bytes(torch.device("cuda"))
            half = torch.cuda.get_device_capability() >= (8, 0)
            return cls(card, memory, half, 1, is_cpu=False, host=free)
        return cls(f"CPU, {cpus} cores", free, has_bfloat16_units(), cpus, is_cpu=True)


def planned(wish: Wish, cache: Path, machine: Machine | None = None) -> tuple[str, list[str]]:
    """The recipe's text, and what was found and decided, line by line, for people.

    cache: where the sources are prepared, which the run then finds there. Raises UserError for a
    wish that cannot be: data without a usable row, a model that is not there.
    """
    return _Planner(wish, machine or Machine.here()).plan(cache)


class _Planner:
    def __init__(self, wish: Wish, machine: Machine) -> None:
        self.wish, self.machine = wish, machine
        if wish.adapter not in ADAPTERS:
            raise UserError(f"--adapter {wish.adapter}: take one of {', '.join(ADAPTERS)}")
        self.config = checkpoint.load_config(wish.model)
        shipped = resources.files("smollm3") / "recipes" / FILE
        self.text = RecipeText(shipped.read_text(encoding="utf-8"))
        self.said: list[str] = []

    def plan(self, cache: Path) -> tuple[str, list[str]]:
        wish = self.wish
        tokenizer = checkpoint.load_tokenizer(wish.model)
        if not tokenizer.template:
            tokenizer = tokenizer.with_template(default_template(**ChatIdentity().model_dump()))
        sources = [look("mine", wish.data, tokenizer, cache)]
        if sources[0].is_pairs and wish.pairs:
            raise UserError(f"{wish.data}: holds preference pairs; give it as --preferences alone")
        if sources[0].is_pairs:
            sources = [look("pairs", wish.data, tokenizer, cache)]
        elif wish.pairs:
            sources.append(look("pairs", wish.pairs, tokenizer, cache))
            if not sources[1].is_pairs:
                raise UserError(f"--preferences {wish.pairs}: no pairs of chosen and rejected")
        self._set(("name",), wish.name, "")
        self._set(("threads",), self.machine.threads, f"this machine: {self.machine.name}")
        self._after(sources, tokenizer)
        self._override()  # what is asked for is not decided again, but decided by
        for looked, stage in (("mine", "sft"), ("pairs", "apo")):
            if looked not in [source.name for source in sources]:
                self.text.remove(("sources", looked))
                self.text.remove(("stages", stage))
        for source in sources:
            self.said.append(f"{source.name}: {source}")
            for key in source.spec:
                self.text.set(("sources", source.name, key), source.spec[key])
            self._stage("apo" if source.is_pairs else "sft", source, sources[0])
        if self.machine.is_cpu:
            self._shorten(sources)
        costs = self._costs(sources)  # measured here, so once for both
        self._rates(costs)
        self._pace(sources, costs)
        self._override()  # where a decision was about the mapping around it
        load_recipe_text(self.text.text, FILE)  # whatever was set is checked before it is written
        return self.text.text, self.said

    def _override(self) -> None:
        """What --set says, each on its line."""
        for override in self.wish.overrides:
            name, equals, value = override.partition("=")
            if not equals or not name:
                raise UserError(f"--set {override}: write it as key.path=value")
            key: Key = tuple(int(p) if p.isdigit() else p for p in name.split("."))
            if key[:-1] and self._value(key[:1]) is None:
                raise UserError(f"--set {name}: there is no '{key[0]}'")
            self.text.set(key, parse_yaml(value or "null", f"--set {name}")[0], "said by --set")
            if key[-1] in ("steps", "tokens") and self._value((*key[:-1], "epochs")) is not None:
                self.text.remove((*key[:-1], "epochs"))

    def _set(self, key: Key, value: Any, why: str) -> None:
        """A line of the recipe, said to the user; what --set decides is not decided here."""
        if self._is_asked(".".join(map(str, key))):
            return
        decision = Decision(key, value, why)
        self.text.set(key, value, why)
        if why:
            self.said.append(str(decision))

    # one stage

    def _stage(self, name: str, source: Looked, first: Looked) -> None:
        wish, at = self.wish, ("stages", name)
        if name == "sft" or source is first:
            self.text.set((*at, "from"), wish.base)
        self._context(at, source)
        context = self._value((*at, "context"))
        rows = len(source.lengths) if source.is_pairs else math.ceil(source.tokens / context / 0.9)
        epochs = self._value((*at, "epochs")) or 1
        batch = _power_below(epochs * rows / STEPS, 2 if source.is_pairs else 1, 32)
        self._set(
            (*at, "batch"),
            batch,
            f"{epochs:g} x the data is about {epochs * rows // batch:,.0f} steps",
        )
        self._fit(at)

    def _context(self, at: Key, source: Looked) -> None:
        most = self.config.context
        long = float(np.quantile(source.lengths, 0.99))
        wanted = self.wish.context or min(max(128, 2 ** math.ceil(math.log2(long))), most)
        cut = int((source.lengths > wanted + 1).sum())
        are = "is" if cut == 1 else "are"
        lost = f"{cut:,} {are} longer and {are} {'left out' if source.is_pairs else 'cut'}"
        why = f"99% have at most {long:,.0f} tokens" + (f"; {lost}" if cut else "")
        self._set((*at, "context"), wanted, f"--context; {why}" if self.wish.context else why)
        if wanted > most:
            # SmolLM3 went from 4k to 32k with 40 times the theta, from 32k to 64k with 2.5 times.
            theta = self.config.rope_theta * (wanted / most) ** 1.5
            why = f"longer rows than the model's {most:,} need slower rotations"
            self._set((*at, "rope_theta"), float(f"{theta:.2g}"), why)

    def _fit(self, at: Key) -> None:
        """Adapter, precision, recompute, offload and micro_batch: the first choice that fits."""
        machine, wish = self.machine, self.wish
        half = machine.half
        self._set(
            (*at, "precision"),
            "bfloat16" if half else "float32",
            f"{machine.name} {'has' if half else 'has no'} units for bfloat16",
        )
        stage = self._recipe().stages[str(at[1])]
        assert isinstance(stage, TrainStage)
        for kind, moments, recompute, rows, offload in self._choices(at):
            adapter = _adapter(kind)
            choice: dict[str, Any] = {
                "adapter": adapter,
                "optimizer": stage.optimizer.model_copy(update={"moments": moments}),
                "recompute": recompute,
                "micro_batch": rows,
            }
            if adapter is not None:
                choice["adapter"] = Adapter.model_validate(adapter)
            free = [key for key in choice if not self._is_asked(f"stages.{at[1]}.{key}")]
            stage = stage.model_copy(update={key: choice[key] for key in free})
            layout, on_gpus = Layout(offload=offload), not machine.is_cpu
            memory = training_memory(self.config, stage, layout, on_gpus=on_gpus, chunk=LOGITS)
            if memory.total <= SHARE * machine.memory and memory.host <= SHARE * machine.host:
                break
        else:
            raise UserError(
                f"{wish.model}: training it needs {size(memory.total)}, and {machine.name} has "
                f"{size(machine.memory)} free; take a smaller model or --context"
            )
        learnt = trained_parameters(self.config, stage.adapter)
        share = learnt / self.config.parameters
        needs = f"{size(memory.total)} of the {size(machine.memory)} that are free"
        if memory.host:
            needs += f", and {size(memory.host)} of the host's {size(machine.host)}"
        if stage.adapter is None:
            why = f"all {count(learnt)} weights are trained, as --adapter full says; {needs}"
        else:
            said = "--adapter; " if wish.adapter != "auto" else ""
            why = f"{said}{count(learnt)} weights are trained, {share:.1%} of the model's; {needs}"
        self._set((*at, "adapter"), _adapter(kind), why)
        if moments != "float32":
            self._set((*at, "optimizer", "moments"), moments, "those in float32 would not fit")
        if recompute != "none":
            self._set((*at, "recompute"), recompute, "what the backward pass needs would not fit")
        if offload:
            why = "float32 weights and moments would not fit, so AdamW runs on the host"
            self._set((*at, "parallel"), {"offload": True}, why)
        self._set((*at, "micro_batch"), rows, "rows at once, the rest of a batch one after another")

    def _choices(self, at: Key) -> Iterator[tuple[str, str, str, int, bool]]:
        """(adapter, moments, recompute, micro_batch, offload), best first."""
        asked = self.wish.adapter
        kinds = ["lora", "qlora"] if asked == "auto" else [asked]
        batch = self._value((*at, "batch"))
        # More rows at once bring nothing on a CPU, nor does a host's memory.
        on_cpu = self.machine.is_cpu
        sizes = [1] if on_cpu else [n for n in (8, 4, 2, 1) if batch % n == 0]
        policies = ("none", "selective", "full") if on_cpu else get_args(Recompute)
        # An adapter's moments are few; torchao has the 8-bit ones.
        states = [("float32", False)]
        if asked == "full":
            states += [("8bit", False)] if find_spec("torchao") is not None else []
            states += [("float32", True)] if not on_cpu else []
        for kind in kinds:
            for moments, offload in states:
                for recompute in policies:
                    for rows in sizes if recompute == "none" else [1]:
                        yield kind, moments, recompute, rows, offload

    def _rates(self, costs: Sequence[StageCost]) -> None:
        """2e-5 for 3B weights, as SmolLM3's SFT; smaller models learn at more, an adapter at ten
        times as much (Schulman et al. 2025, "LoRA without regret"). Preferences take a tenth in
        2,000 steps, as published recipes do, and more by the root of the number for fewer."""
        for cost in costs:
            at: Key = ("stages", cost.name)
            adapted = self._value((*at, "adapter")) is not None
            peak = min(2e-5 * math.sqrt(3e9 / self.config.parameters) * 10**adapted, 1e-3)
            more = ", ten times as much for an adapter" if adapted else ""
            why = f"for {count(self.config.parameters)} weights{more}"
            if cost.name == "apo":
                share = min(1.0, math.sqrt(20 / max(1, cost.steps or 0)))
                peak, why = share * peak, f"{why}; {share:.0%} of that for preferences"
            self._set((*at, "lr", "peak"), float(f"{peak:.2g}"), why)

    # the whole

    def _after(self, sources: Sequence[Looked], tokenizer: Tokenizer) -> None:
        claims = [
            {
                "claim": "Held-out documents are likelier than before",
                "metric": f"loss/{s.name}",
                "model": "sft",
                "baseline_model": self.wish.base,
                "compare": "difference",
                "at_most": 0,
            }
            if not s.is_pairs
            else {
                "claim": "Chosen answers are further ahead of rejected ones than before",
                "metric": "preference/margin",
                "model": "apo",
                "baseline_model": self.wish.base,
                "compare": "difference",
                "at_least": 0,
            }
            for s in sources
        ]
        at: Key = ("stages", "compare")
        for i in (1, 0):
            if i < len(claims):
                self.text.set((*at, "claims", i), claims[i])
            else:
                self.text.remove((*at, "claims", i))
        if self.machine.is_cpu:
            self._set((*at, "documents"), 40, "a CPU reads these in a minute or two")
            self._set((*at, "answers"), 4, "written in a minute here")
        if (known := questions(tokenizer)) != self._value((*at, "panel")):
            why = "the model's chat template has no place for thinking, for tools, or for both"
            self._set((*at, "panel"), known, why)
        self._panel()
        if find_spec("gguf") is not None and _fits_gguf(self.config):
            why = "for transformers and vLLM; for llama.cpp"
            self._set(("stages", "export", "to"), ["hf:bfloat16", "gguf:q8_0"], why)

    def _panel(self) -> None:
        """Real tasks before and after, where they can be had without asking anybody."""
        at: Key = ("stages", "benchmarks")
        self.text.set((*at, "beside"), self.wish.base)
        if any(override.startswith("stages.benchmarks") for override in self.wish.overrides):
            return
        why = ""
        if find_spec("lm_eval") is None:
            why = "pip install 'smollm3[eval]'"
        elif gone := missing():
            why = f"the data of {', '.join(gone)} are not in the Hub's cache here"
        if why:
            self.text.remove(at)
            data = "--set stages.benchmarks.data=FOLDER takes them from a folder"
            self.said.append(f"stages.benchmarks: left out: {why}; {data}")
        else:
            self.said.append(f"stages.benchmarks: {', '.join(TASKS)}, before and after")

    def _shorten(self, sources: Sequence[Looked]) -> None:
        """A stage that a CPU would not finish soon gets fewer steps, said loudly."""
        looked = {source.name: source for source in sources}
        for cost in self._costs(sources):
            at: Key = ("stages", cost.name)
            [name] = self._value((*at, "mixture"))
            seconds = (cost.seconds or 0) * looked[name].work
            if cost.steps is None or seconds <= LONGEST:
                continue
            if self._value((*at, "epochs")) is None or self._is_asked(f"stages.{cost.name}.epochs"):
                continue
            steps = max(10, int(cost.steps * LONGEST / seconds))
            self.text.remove((*at, "epochs"))
            part = steps / cost.steps * 100
            self._set(
                (*at, "steps"),
                steps,
                f"{duration(LONGEST)} on this CPU, {part:.0f}% of the {cost.steps:,} steps that "
                f"all epochs need ({duration(seconds)}): more of them learn more",
            )

    def _is_asked(self, name: str) -> bool:
        return any(override.partition("=")[0] == name for override in self.wish.overrides)

    def _pace(self, sources: Sequence[Looked], costs: Sequence[StageCost]) -> None:
        """How often a stage looks at what is held out, and saves: up to ten and about five times.

        A row that is looked at costs half of one that is trained on; together at most a fifth of
        the work, but three looks at four rows.
        """
        held = {source.name: source.held for source in sources}
        for cost in costs:
            if cost.steps is None or self._is_asked(f"stages.{cost.name}.validation"):
                continue
            at: Key = ("stages", cost.name)
            [name] = self._value((*at, "mixture"))
            trained = cost.steps * self._value((*at, "batch"))
            rows = min(held[name], max(4, trained // 40))
            every = math.ceil(cost.steps / min(10, max(3, 0.4 * trained / rows)))
            looks = math.ceil(cost.steps / every)
            current = self._value((*at, "validation"))
            retain = current.get("retain")
            at_the_end = 6 if retain else 0  # the parent, four on the way to it, what stays
            share = (looks + at_the_end) * rows / 2 / trained
            why = f"{looks} looks at {rows} held-out rows, {share:.0%} on top; the best is kept"
            why += f", as near the parent as {retain:.0%} of its gain allows" if retain else ""
            self._set((*at, "validation"), current | {"every": every, "rows": rows}, why)
            self.text.set((*at, "save_every"), max(1, math.ceil(cost.steps / 5)))

    def _costs(self, sources: Sequence[Looked]) -> list[StageCost]:
        sizes = {s.name: (len(s.lengths), s.tokens) for s in sources}
        return [c for c in stage_costs(self._recipe(), sizes=sizes) if c.kind == "train"]

    def _recipe(self) -> Recipe:
        return load_recipe_text(self.text.text, FILE)

    def _value(self, key: Key) -> Any:
        value, _ = parse_yaml(self.text.text, FILE)
        for part in key:
            value = value.get(part) if isinstance(value, dict) else value[part]
        return value


def _fits_gguf(config: ModelConfig) -> bool:
    try:
        architecture(config)
    except UserError:
        return False
    return not (config.hidden % 32 or config.ffn % 32)  # blocks of q8_0


def _adapter(kind: str) -> dict[str, Any] | None:
    """On the layers of the feed-forward: with those of attention as much is learnt and more
    forgotten (measured in docs/finetuning.md)."""
    if kind == "full":
        return None
    lora = {"kind": "lora", "rank": RANK, "alpha": 2 * RANK, "layers": ["gate", "up", "down"]}
    return lora | ({"base": "nf4"} if kind == "qlora" else {"kind": kind})


def _power_below(n: float, least: int, most: int) -> int:
    """The largest power of two up to n, within limits."""
    return min(max(1 << int(math.log2(max(n, 1))), least), most)
