"""Mutation tests: one line is broken on purpose, and some test must fail. The lines are those that
people really get wrong with SmolLM3.

Each is (name, file of src/smollm3 or, by its path, of kernels/, what stands there, what it is
broken into, the tests that should die). `tests/test_mutants.py` applies them to a copy; `make test-all` runs it.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str


U, P, I = "tests/unit/test_", "tests/parity/test_", "tests/invariants/test_"  # noqa: E741
MODEL = f"{U}model.py"
SCHEDULER = f"{U}infer_scheduler.py"
RENDER = f"{U}chat_render.py"
LOADER = f"{U}data_loader.py"
NATIVE = f"{U}native.py"
LOSSES = f"{U}train_losses.py"
CONSTRAINTS = f"{U}infer_constraints.py"

MUTANTS = [
    # the model
    Mutant("NoPE inverted", "model/transformer.py", "if self.uses_rope:", "if not self.uses_rope:", MODEL),
    Mutant("NoPE shifted by one", "model/config.py", "(i + 1) % nope_every != 0", "i % nope_every != 0", f"{U}model.py"),
    Mutant("rotation backwards", "model/transformer.py", "torch.cat([-second, first], dim=-1)", "torch.cat([second, -first], dim=-1)", MODEL),
    Mutant("interleaved rotation", "model/rope.py", "torch.cat([angles, angles], dim=-1)", "angles.repeat_interleave(2, -1)", MODEL),
    Mutant("no YaRN attention factor", "model/rope.py", "0.1 * math.log(yarn.factor) + 1.0", "1.0", f"{P}yarn.py"),
    Mutant("YaRN ramp upside down", "model/rope.py", "plain * (1 - slowed) + plain / yarn.factor * slowed", "plain * slowed + plain / yarn.factor * (1 - slowed)", f"{P}yarn.py"),
    Mutant("mask off by one", "model/attention.py", ".tril()", ".tril(1)", MODEL),
    Mutant("documents see each other", "model/attention.py", "same_BTT & lower_TT", "lower_TT", MODEL),
    Mutant("norm without eps", "model/transformer.py", "x32_BTE.square().mean(-1, keepdim=True) + self.eps", "x32_BTE.square().mean(-1, keepdim=True)", f"{U}model.py"),
    Mutant("gate and up swapped", "model/transformer.py", "F.silu(self.gate(x_BTE)) * self.up(x_BTE)", "F.silu(self.up(x_BTE)) * self.gate(x_BTE)", f"{P}transformers.py"),
    Mutant("residual init not scaled by depth", "model/init.py", "math.sqrt(2 * config.layers)", "1.0", f"{U}model.py"),
    Mutant("published no_rope_layers read as NoPE flags", "checkpoint/config.py", "[int(flag) for flag in config.uses_rope]", "[int(not flag) for flag in config.uses_rope]", f"{U}checkpoint.py"),
    # losses
    Mutant("APO-zero pushes the rejected answer up", "train/losses.py", "torch.sigmoid(-chosen) + torch.sigmoid(rejected)", "torch.sigmoid(-chosen) + torch.sigmoid(-rejected)", LOSSES),
    Mutant("APO-down without its margin", "train/losses.py", "torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)", "torch.sigmoid(chosen) + torch.sigmoid(rejected)", LOSSES),
    Mutant("no reference model", "train/losses.py", "beta * (sums_B - reference_B)", "beta * sums_B", LOSSES),
    Mutant("weights ignored", "train/losses.py", "weighted_N = -weights_N * ", "weighted_N = -1.0 * ", LOSSES),
    # the loop
    Mutant("mean of means in accumulation", "train/loop.py", "others[1] += sums.weight", "others[1] = sums.weight", f"{U}train_loop.py"),
    Mutant("weight decay on embeddings", "train/optimizer.py", '{"params": [embedding], "weight_decay": 0.0}', '{"params": [embedding], "weight_decay": spec.weight_decay}', f"{U}train_optimizer.py"),
    Mutant("no weight decay on norms", "train/optimizer.py", "list(named.values())", "[p for p in named.values() if p.ndim > 1]", f"{U}train_optimizer.py"),
    Mutant("warm-up begins at zero", "train/schedule.py", "lr.peak * (step + 1) / rising", "lr.peak * step / rising", f"{U}train_schedule.py"),
    Mutant("cosine ignores its end", "train/schedule.py", "lr.peak * (lr.end + (1 - lr.end) * share)", "lr.peak * share", f"{U}train_schedule.py"),
    Mutant("clipping before the global mean", "train/loop.py", "min(1.0, self.stage.clip / (grad_norm + 1e-6)) / weight", "min(1.0, self.stage.clip / (grad_norm * weight + 1e-6)) / weight", f"{U}train_loop.py"),
    Mutant("NaN updates the weights", "train/loss_spike.py", "math.isfinite(loss) and math.isfinite(grad_norm)", "True", f"{U}train_loss_spike.py"),
    Mutant("a damaged training checkpoint is used", "train/training_checkpoint.py", 'content["files"] != checksums(folder / name for name in content["files"])', "False", f"{U}train_checkpoint.py"),
    # sharded training
    Mutant("every run of rows draws the same weights, as the report's TP ranks did", "model/init.py", 'f"{seed}/{name}" + (f"/{i}" if i else "")', 'f"{seed}/{name}"', f"{U}model_init.py"),
    Mutant("a context-parallel rank sees only its document's last tokens", "train/attention.py", "starts_k.append(b * S + start)", "starts_k.append(b * S + begin)", f"{U}train_attention.py"),
    Mutant("context-parallel ranks without balance", "train/layout.py", "(c, 2 * self.cp - 1 - c)", "(2 * c, 2 * c + 1)", f"{U}train_layout.py"),
    Mutant("ranks of one row taken for two", "train/layout.py", "return rank // (self.cp * self.tp)", "return rank // self.tp", f"{U}train_layout.py"),
    Mutant("every nth checkpoint is deleted", "train/training_checkpoint.py", "if not keep_every or _step(old) % keep_every:", "if True:", f"{U}train_checkpoint.py"),
    Mutant("rare rows are skipped for ever", "train/loss_spike.py", "rare = spike and not self.after_spike and self.alone >= RARE", "rare = False", f"{U}train_loss_spike.py"),
    Mutant("the last weights for the best", "train/loop.py", 'if spec.keep == "best" and looks.step < progress.step:', "if False:", f"{U}recipe_runs.py"),
    # adapters and fine-tuning
    Mutant("an adapter without its scale", "train/adapters.py", "base + self.scale * F.linear", "base + F.linear", f"{P}adapters_peft.py"),
    Mutant("rsLoRA scales as LoRA", "checkpoint/adapter.py", 'math.sqrt(rank) if kind == "rslora" else rank', "rank", f"{P}adapters_peft.py"),
    Mutant("DoRA's length is learnt through", "train/adapters.py", "with torch.no_grad(), torch.autocast", "with torch.autocast", f"{P}adapters_peft.py"),
    Mutant("the base is trained too", "train/adapters.py", "model.requires_grad_(False)", "model.requires_grad_(True)", f"{U}train_adapters.py"),
    Mutant("nibbles change places", "train/adapters.py", "codes[::2] | codes[1::2] << 4", "codes[1::2] | codes[::2] << 4", f"{U}train_adapters.py"),
    Mutant("changed data are not seen", "recipe/runner.py", "if file_revision(self.recipe.sources[source]) not in (None, revision)", "if False", f"{U}recipe_runs.py"),
    Mutant("a failed start holds the recipe", "recipe/runner.py", 'or not any(work.glob("checkpoints/step-*"))', "or False", f"{U}recipe_runs.py"),
    Mutant("other thetas are merged", "merge.py", "        _check_alike(first, other)", "        pass", f"{U}merge.py"),
    Mutant("the parent's sampling is forgotten", "checkpoint/hf.py", "sampling = {k: v for k, v in read_object(own).items() if k not in ids}", "pass", f"{U}recipe_runs.py"),
    # data
    Mutant("the next document's first token is trained", "data/loader.py", "trained[:, 1:] & (documents[:, 1:] == documents[:, :-1])", "trained[:, 1:]", LOADER),
    Mutant("ranks get the same rows", "data/loader.py", "for r in (rank, rank + 1))", "for r in (0, 1))", I + "batches.py"),
    Mutant("every epoch in the same order", "data/loader.py", '_order(self.rows, f"{self.seed}/{self.shard.name}/{epoch}")[place]', '_order(self.rows, f"{self.seed}/{self.shard.name}")[place]', LOADER),
    Mutant("a row starts one token late", "data/loader.py", "offset = self.start + i * self.context", "offset = self.start + i * (self.context + 1)", LOADER),
    Mutant("mixture drifts", "data/mixture.py", "samples[start - rank : stop - rank]", "samples[start - rank + 1 : stop - rank + 1]", f"{U}data_mixture.py"),
    Mutant("personas emptied, as SmolTalk2's first processing did", "data/formats.py", '"custom_instructions": kwargs.get("custom_instructions"),', '"custom_instructions": None,', f"{U}data_sources.py"),
    Mutant("a message of weight 0 is trained", "chat/render.py", "for span, kept in zip(spans, trained, strict=True) if kept]", "for span, kept in zip(spans, trained, strict=True)]", f"{U}data_rows.py"),
    Mutant("a row's own tools are dropped", "data/formats.py", 'or kwargs.get("tools")) or tools,', 'or kwargs.get("tools")),', f"{U}data_formats.py"),
    Mutant("a prompt is doubled", "data/formats.py", "if answers_it or not _holds(before, prompt):", "if True:", f"{U}data_formats.py"),
    Mutant("Arrow's padding is trained on", "data/sources.py", "return (read._replace(row=without_nulls(read.row)) for read in reads)", "return reads", f"{U}data_formats.py"),
    Mutant("everything is thought about", "data/sources.py", "mode = thinks if source.thinking is None", "mode = True if source.thinking is None", f"{U}data_formats.py"),
    Mutant("test splits are trained on", "data/hub.py", "if named_kind(n) and not _HELD_BACK & set(_words(n))]", "if named_kind(n)]", f"{U}data_formats.py"),
    Mutant("the last batch begins the next epoch", "data/loader.py", "return sample if self._samples is None else min(sample, self._samples)", "return sample", LOADER),
    Mutant("lines are counted from 0", "data/readers.py", "yield Read(number, number + 1, json.loads", "yield Read(number, number, json.loads", f"{U}data_rows.py"),
    Mutant("a part depends on who made it", "data/sources.py", "spans = planned.parts[part] if part is not None else", "spans = planned.parts[part - 1] if part is not None else", f"{U}data_parts.py"),
    Mutant("parts in the order of the files", "data/sources.py", 'for i in permutation(len(parts), f"{seed}/parts")', "for i in range(len(parts))", f"{U}data_parts.py"),
    Mutant("a cut-off part counts as whole", "data/shards.py", 'stat().st_size != expected["bytes"]', 'stat().st_size < 0', f"{U}data_parts.py"),
    Mutant("documents of two parts are one", "data/shards.py", "local + (low + int(self._documents[part]))", "local + low", f"{U}data_parts.py"),
    Mutant("a budget without an end", "data/preparation.py", "if tokens >= self.budget:", "if False:", f"{U}data_parts.py"),
    Mutant("tiktoken for any tokenizer", "data/encoder.py", "return ways == len(merges)", "return True", f"{U}data_encoder.py"),
    Mutant("other sources are not looked at", "data/steps.py", 'index_folder=self.folder("index") if self.step.options.get("across") else None,', "index_folder=None,", f"{U}data_steps.py"),
    Mutant("old shards after another source changed", "data/preparation.py", "settings += [other.model_dump(mode=\"json\"), fingerprint(other)]", "settings += []", f"{U}data_steps.py"),
    Mutant("a cache without an end", "data/store.py", "if total + size <= self.room:", "if True:", f"{U}data_store.py"),
    Mutant("a cut-off file out of the store", "data/store.py", "if partial.stat().st_size != size:", "if False:", f"{U}data_store.py"),
    Mutant("pictures are pages", "data/warc.py", 'return str(kind).partition(";")[0].strip().lower() in _HTML', "return True", f"{U}data_warc.py"),
    Mutant("another fastText model", "data/filters.py", "self.model._model = _FastText(self.file)", "raise OSError(self.file)", f"{U}data_steps.py"),
    Mutant("twelve words contaminate", "data/filters.py", "n = min(self.n_grams, len(words))", "n = min(self.n_grams - 1, len(words))", f"{U}data_steps.py"),
    Mutant("wrong maths kept", "synth/checks.py", 'else "wrong answer"', "else None", f"{U}synth.py"),
    Mutant("pairs that are both right", "synth/run.py", "if applies and self._verdict(other) is None:", "if False:", f"{U}synth.py"),
    Mutant("an answer to another question", "synth/run.py", "sha256_json([messages, mode, sample, *policy])", "sha256_json([prompt, mode, sample, *policy])", f"{U}synth.py"),
    Mutant("the weak one takes all threads", "synth/teacher.py", "threading.BoundedSemaphore(self.teacher.requests)", "threading.BoundedSemaphore(1000)", f"{U}synth.py"),
    Mutant("children of a synth stage stay", "recipe/graph.py", "reads = {*parents[name], *makers(spec, recipe)}", "reads = {*parents[name]}", f"{U}recipe_synth.py"),
    Mutant("asked anew when made again", "recipe/stages.py", "if known.exists() and not (inputs.work / ANSWERS).exists():", "if False:", f"{U}recipe_synth.py"),
    Mutant("what was answered is asked again", "synth/run.py", "return [question for question in wanted if question.key not in self.answers]", "return wanted", f"{U}synth.py"),
    Mutant("worst fit", "data/packing.py", "room = amounts[at]", "room = amounts[-1]", f"{U}data_packing.py"),
    # chat
    Mutant("header trained", "chat/render.py", "spans.append((len(prompt), stop.end()))", "spans.append((len(prompt) - 22, stop.end()))", RENDER),
    Mutant("stop token not trained", "chat/render.py", "spans.append((len(prompt), stop.end()))", "spans.append((len(prompt), stop.start()))", RENDER),
    Mutant("system block left open", "chat/template.jinja", "{% endif %}\n<|im_end|>\n{% for message", "{% endif %}\n{% for message", RENDER),
    Mutant("contents recognise control tokens", "tokenizer/tokenizer.py", "if restored == texts:", "if True:", RENDER),
    Mutant("texts share a vocabulary with control tokens", "tokenizer/tokenizer.py", "all(model.token_to_id(token) is None for token in self._control)", "True", f"{U}tokenizer.py"),
    # inference, merging
    Mutant("seed without position", "infer/sampler.py", 'f"{seed}/{position}"', 'f"{seed}"', f"{U}infer_sampler.py"),
    Mutant("salts ignored", "infer/blocks.py", 'salt.encode(errors="surrogatepass")', 'b""', SCHEDULER),
    Mutant("blocks known by their own ids alone", "infer/blocks.py", "hashlib.blake2b(parent + own,", "hashlib.blake2b(own,", SCHEDULER),
    Mutant("newest blocks forgotten first", "infer/blocks.py", "self._idle.popitem(last=False)", "self._idle.popitem()", SCHEDULER),
    Mutant("nothing left to compute of a known prompt", "infer/scheduler.py", "usable = min(sequence.first_wanted, len(sequence.ids) - 1) // BLOCK", "usable = len(sequence.ids) // BLOCK", SCHEDULER),
    Mutant("the oldest makes room", "infer/scheduler.py", "newest = self.running[-1]", "newest = self.running[0]", SCHEDULER),
    Mutant("what ended keeps its blocks", "infer/scheduler.py", "self.blocks.release(sequence.blocks)", "pass", SCHEDULER),
    Mutant("the thread runs while nothing can", "infer/worker.py", "self._stuck = not plan", "self._stuck = False", I + "engine.py"),
    Mutant("rejected draft tokens are kept", "infer/jobs.py", "if chosen.id != expected:", "if expected is None:", I + "engine.py"),
    Mutant("what failed stays in the plan", "infer/worker.py", "job = self._jobs[sequence]\n        self._remove(sequence)", "job = self._jobs.pop(sequence)", I + "engine.py"),
    Mutant("stop text shown", "infer/text.py", "return text[:place]", "return text", f"{U}infer_text.py"),
    Mutant("half a stop text shown", "infer/text.py", "return text[: len(text) - held]", "return text", f"{U}infer_text.py"),
    Mutant("a step's requests are kept", "infer/scheduler.py", "plan, self._plan = list(self._plan.values()), {}", "plan = list(self._plan.values())", I + "soak.py"),
    Mutant("padding writes to a block of somebody", "infer/backends/cuda.py", "self._spare, np.int64)", "0, np.int64)", f"{U}infer_cuda.py"),
    Mutant("one token sees the place behind it", "infer/backends/torch.py", "torch.arange(max(lengths), device=device) < lengths_S1", "torch.arange(max(lengths), device=device) <= lengths_S1", f"{U}infer_torch.py"),
    Mutant("a chunk sees ahead", "infer/backends/torch.py", "device=device) > seen_T1", "device=device) > seen_T1 + 1", f"{U}infer_torch.py"),
    Mutant("top_p counts all tokens", "infer/sampler.py", "total = float(above.sum()) + (top_k - above.size) * kth", "pass", f"{U}infer_sampler.py"),
    Mutant("a thinking budget without end", "infer/constrain/thinking.py", "if used < self._tokens or broken:", "if True:", CONSTRAINTS),
    Mutant("tags may be spelled in letters", "infer/constrain/grammars.py", """f"/(?s:.+)/ & ~/(?s:.*)({'|'.join(map(_escaped, ends))})(?s:.*)/\"""", '"/(?s:.+)/"', CONSTRAINTS),
    Mutant("only the first stop token ends a constrained answer", "infer/constrain/masks.py", "eos_token=list(self._tokenizer.stop_ids)", "eos_token=self._tokenizer.stop_ids[0]", CONSTRAINTS),
    Mutant("the mask of the token before", "infer/constrain/masks.py", 'does not fit: {_line(self._matcher.get_error())}")\n        self._mask = None', 'does not fit: {_line(self._matcher.get_error())}")', CONSTRAINTS),
    Mutant("a draft model keeps what was rejected", "infer/speculation.py", "self._read = start + min(right, len(draft) - 1)", "self._read = start + len(draft) - 1", f"{U}infer_speculation.py"),
    Mutant("lookup says a token twice", "infer/speculation.py", "ids[end : end + LONGEST]", "ids[end - 1 : end + LONGEST]", f"{U}infer_speculation.py"),
    Mutant("random rows repeat", "bench/shapes.py", "self.values // block - 3", "self.values // block", f"{U}bench_shapes.py"),
    Mutant("all random tensors the same", "bench/shapes.py", "int(self.random.integers(len(chunk)))", "0", f"{U}bench_shapes.py"),
    Mutant("norms of zeros", "bench/shapes.py", "np.ones(shapes[name], np.float32)", "np.zeros(shapes[name], np.float32)", f"{U}bench_shapes.py"),
    Mutant("merge weights not normalised", "merge.py", "weight / total)", "weight)", f"{U}merge.py"),
    # agents
    Mutant("code may fork", "agent/sandbox/lockdown.py", '"clone": _bit(0, _CLONE_THREAD)', '"clone": _op(_RETURN, ALLOW)', f"{U}agent_jail.py"),
    Mutant("threads go on between runs", "agent/sandbox/process.py", 'self._order(b"s")', 'self._order(b"c")', f"{U}agent_sandbox.py"),
    Mutant("one interpreter for all", "agent/python.py", "self._held.get(conversation)", "next(iter(self._held.values()), None)", f"{U}agent_loop.py"),
    Mutant("nobody is asked", "agent/loop.py", "if not tool.read_only:", "if False:", f"{U}agent_loop.py"),
    Mutant("half a call is made", "turn/loop.py", 'if reply.reason == "tool_calls" else ()', "if True else ()", f"{U}agent_loop.py"),
    Mutant("unknown arguments pass", "agent/schema.py", '= "forbid"', '= "ignore"', f"{U}agent_tools.py"),
    # from a conversation to an answer
    Mutant("calls that were not offered are made", "turn/request.py", "xml=self.may_call and bool(self.tools or asked.tools)", "xml=True", f"{U}turn_users.py"),
    Mutant("nobody knows that the prompt began to think", "turn/request.py", 'reasoning_of(engine.tokenizer, ids) == "open"', "False", f"{U}turn_users.py"),
    Mutant("the last step may call again", "turn/loop.py", "return _without_calls(request) if self._is_last else request", "return request", f"{U}turn.py"),
    Mutant("a call of others' does not end the loop", "turn/loop.py", "or not all(map(self._ours, message.tool_calls))", "", f"{U}turn.py"),
    Mutant("a stop text runs on until somebody reads", "turn/reply.py", "if self.ended:\n                    self.finish()", "if False:\n                    self.finish()", f"{U}turn.py"),
    Mutant("what no grammar says is not checked", "infer/constrain/grammars.py", "if part.check and (needed or not name)", "if False", f"{U}infer_schemas.py"),
    Mutant("a bad tool hurts every request", "infer/constrain/grammars.py", 'spec.strict or (spec.choice != "auto" and len(_chosen(spec)) == 1)', "True", f"{U}infer_schemas.py"),
    Mutant("bounds wider than numbers", "infer/constrain/schemas.py", "if beyond > _EXACT:", "if beyond > 2.0**70:", f"{U}infer_schemas.py"),
    Mutant("endless schemas are begun", "infer/constrain/schemas.py", "if not _has_finite(reduced):", "if False:", CONSTRAINTS),
    Mutant("the sampled token is not among the alternatives", "serve/dialects/tokens.py", "if all(index != step.id for index, _ in found):", "if False:", f"{U}serve_turns.py"),
    Mutant("the factor of YaRN is the lengths'", "checkpoint/config.py", 'if original == context or rope.get("factor") is not None:', "if False:", f"{U}checkpoint.py"),
    # the server
    Mutant("a preempted text is summed twice", "infer/jobs.py", "if step.start == 0:  # also after a preemption", "if False:", f"{U}serve_reading.py"),
    Mutant("keys see each other's files", "serve/file_store.py", "if record[OWNER] != owner:", "if False:", f"{U}serve_files.py"),
    Mutant("a batch goes before others", "batch/run.py", "and near and self.welcome()", "and near", f"{U}serve_files.py"),
    Mutant("a stopped server fails its batch", "serve/batches.py", "        except EngineClosed:\n            raise Stopped from None\n        return {", "        except EngineClosed:\n            raise UserError('closed') from None\n        return {", f"{U}serve_files.py"),
    Mutant("any name is this machine's", "serve/settings.py", 'name == "localhost" or', 'name or', f"{U}serve_guard.py"),
    Mutant("any web page is welcome", "serve/guard.py", "return own or origin in", "return bool(origin) or origin in", f"{U}serve_guard.py"),
    Mutant("forms may be posted", "serve/guard.py", 'elif kind != "application/json" and (kind or _has_body(headers)):', "elif False:", f"{U}serve_guard.py"),
    Mutant("faults quote what was said", "serve/guard.py", 'told.append(f"{type(error).__name__}', 'told.append(f"{error}', f"{U}serve_guard.py"),
    Mutant("keys share their prefixes", "serve/ask.py", "replace(r, cache_salt=cache_salt)", 'replace(r, cache_salt="")', f"{U}serve_guard.py"),
    Mutant("a queue without end", "serve/admission.py", "if self.waiting + count > self._queue:", "if False:", f"{U}serve_guard.py"),
    Mutant("stop texts end reasoning", "turn/reply.py", "if isinstance(event, ContentDelta):", "if not isinstance(event, CallStart | CallEnd) and hasattr(event, 'text'):", f"{U}turn_users.py"),
    Mutant("calls beside the one that was allowed", "turn/reply.py", "if isinstance(event, CallEnd) and not self.request.parallel:", "if False:", f"{U}serve_chat.py"),
    Mutant("reasoning of a turn before is lost", "serve/dialects/openai_items.py", '_add(messages, {"reasoning_content": item.text})', "pass", f"{U}serve_turns.py"),
    Mutant("a prompt is counted for each answer", "serve/answering.py", "if end.index % self.ask.n:", "if False:", f"{U}serve_chat.py"),
    Mutant("the server asks nobody", "serve/tool_executor.py", "approve = nobody if self._questions is None else self._ask", "approve = lambda _: True", f"{U}serve_tools.py"),
    Mutant("keys share their interpreters", "serve/tool_executor.py", "if conversation is None else (salt, conversation)", "if conversation is None else conversation", f"{U}serve_tools.py"),
    Mutant("interpreters outlive their request", "serve/tool_executor.py", "if agent is not None and not self._kept:", "if False:", f"{U}serve_tools.py"),
    Mutant("tokens of earlier steps are forgotten", "serve/steps.py", "self.usage += self._now.usage", "self.usage = self._now.usage", f"{U}serve_tools.py"),
    Mutant("null is a value", "serve/dialects/fields.py", "if row is None and value is not None:", "if row is None:", f"{U}serve_clients.py"),
    Mutant("whatever is listed is accepted", "serve/dialects/rule.py", "if row.only is None:", "if True:", f"{U}serve_clients.py"),
    Mutant("images may be asked about", "serve/dialects/messages.py", "if isinstance(part, OtherPart) and part.inner is None:", "if False:", f"{U}serve_clients.py"),
    Mutant("late system messages are lost", "chat/render.py", "if any(is_system(message) for message in chat[1:]):", "if False:", f"{U}serve_clients.py"),
    Mutant("an overflow in other words", "serve/errors.py", "return TooLong(error) if isinstance(error, ContextOverflow) else refused(str(error))", "return refused(str(error))", f"{U}serve_clients.py"),
    Mutant("halves of characters come in", "serve/guard.py", 'body = _whole_text(b"".join(parts))', 'body = b"".join(parts)', f"{U}serve_clients.py"),
    Mutant("tools that are not allowed are called", "serve/dialects/fields.py", '[tool for tool in declared if tool["name"] in callable_]', "list(declared)", f"{U}serve_clients.py"),
    Mutant("tools undo the format", "serve/dialects/fields.py", "return replace(box.constraint, answer=form), False", "return box.constraint, False", f"{U}serve_clients.py"),
    Mutant("what is left out is not said", "serve/guard.py", 'for what in self._state.get("left_out") or ()', "for what in ()", f"{U}serve_clients.py"),
    Mutant("a quoted tag ends the call", "chat/parse.py", "if later and later.end() > end:", "if False:", f"{U}chat_parse.py"),
    Mutant("the end of a prefill is told again", "turn/reply.py", 'event.text.removeprefix(self._held), ""', 'event.text, ""', f"{U}turn.py"),
    Mutant("an answer may end at once", "infer/sampler.py", "logits_V[self._stops] = TOO_EARLY", "pass", f"{U}serve_clients.py"),
    # evaluation
    Mutant("the context is scored too", "eval/target.py", "max(len(ids) - len(rest), 1)", "1", f"{U}eval_harness.py"),
    Mutant("blanks stay with the context", "eval/target.py", "text = prompt.text.rstrip()", "text = prompt.text", f"{U}eval_harness.py"),
    Mutant("a line that a kill cut off is kept", "eval/journal.py", "os.ftruncate(self._file, good)", "pass", f"{U}eval_harness.py"),
    Mutant("another model's items are used", "eval/journal.py", "if there.get(name) != ours.get(name):", "if False:", f"{U}eval_harness.py"),
    Mutant("prompts longer than their length", "eval/ruler/generate.py", "0, length - task.tokens", "0, length", f"{U}eval_ruler.py"),
    Mutant("one needle is all needles", "eval/ruler/harness.py", "float(any(hits)) if any_of else", "float(any(hits)) if True else", f"{U}eval_ruler.py"),
    Mutant("a program that leaves early has passed", "eval/code.py", "if run.ok and run.value == repr(token):", "if run.error is None:", f"{U}eval_checkers.py"),
    Mutant("what is missing may be missing", "eval/bfcl.py", 'key in arguments or "" in values', "True", f"{U}eval_checkers.py"),
    Mutant("the paired difference is unpaired", "eval/compare.py", "differences = [y - x for x, y in pairs]", "differences = [y for x, y in pairs]", f"{U}eval_checkers.py"),
    # what comes from outside
    Mutant("the shallowest mistake is told", "config/problems.py", "(-len(p.path), p.kind", "(len(p.path), p.kind", f"{U}config.py"),
    Mutant("defaults count as given", "cli/fields.py", "if value not in (None, ())}", "}", f"{U}cli_fields.py"),
    Mutant("preparing data is silent", "recipe/stages.py", "progress=report", "progress=None", f"{U}recipe_stages.py"),
    Mutant("a lock of one's own", "files.py", "lock.acquire(timeout=0)", "pass", f"{U}files.py"),
    # the runner
    Mutant("partial folder published", "files.py", "temporary.mkdir(parents=True)", "temporary.mkdir(parents=True, exist_ok=True); temporary = final; final.mkdir(exist_ok=True)", f"{U}files.py"),
    # the kernels, built again for each
    Mutant("a query sees the next token", "kernels/src/isa.inl", "a.positions[n] + 1 - block * BLOCK", "a.positions[n] + 2 - block * BLOCK", NATIVE),
    Mutant("stretches added without their scale", "kernels/src/isa.inl", "*total = *total * old_factor + more_total * factor;", "*total = *total + more_total;", NATIVE),
    Mutant("a page keeps what was in it", "kernels/src/model.cpp", "if (step.positions[token] % BLOCK) return;", "return;", NATIVE),
    Mutant("NoPE layers rotate in the kernels", "kernels/src/model.cpp", "if (shape_.uses_rope[layer])", "if (layer >= 0)", NATIVE),
    Mutant("8 bits around 127", "kernels/src/pack.cpp", "g.q[i] = p[2 + i] + 128;", "g.q[i] = p[2 + i] + 127;", NATIVE),
    Mutant("pairs of a head stay pairs", "kernels/src/pack.cpp", "if (!pairs) return row;", "return row;", NATIVE),
    Mutant("nibbles around 7", "kernels/src/vec_avx2.hpp", "_mm_mullo_epi16(both, _mm_set1_epi16(-8))", "_mm_mullo_epi16(both, _mm_set1_epi16(-7))", NATIVE),
    Mutant("recoded one step lower", "checkpoint/gguf/quantize.py", "q + np.int8(32)", "q + np.int8(31)", f"{U}gguf_quants.py"),
    Mutant("any file is the next part", "checkpoint/gguf/reader.py", 'if part.metadata.get("split.no", 0) != i:', "if False:", f"{U}gguf.py"),
    Mutant("a damaged cache of weights is used", "infer/backends/packed.py", "if bytes(data[:blank]) == _header(plan, _checksum(data[blank:])):", "if True:", NATIVE),
    Mutant("another file's packed weights", "infer/backends/packed.py", "json.dumps([stamp, smollm3_kernels.VERSION, described])", "json.dumps([smollm3_kernels.VERSION, described])", NATIVE),
]  # fmt: skip
