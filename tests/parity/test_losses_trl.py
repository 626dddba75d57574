"""Our losses and their gradients against trl's trainers, on the labels that trl makes."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from smollm3 import checkpoint
from smollm3.data import Batch
from smollm3.model import packed
from smollm3.train import losses

BETA = 0.3
PROMPTS = ["What is two and two?", "Name a colour.", "Who answers?"]
CHOSEN = ["Four.", "Blue is a colour that I like.", "The model answers."]
REJECTED = ["Five, which is a long answer.", "No.", "Nobody answers the question."]


@contextmanager
def foreign_warnings():
    """trl, transformers and accelerate warn about themselves while they are set up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def turns(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def peers(tokenizer, tmp_path_factory):
    """(theirs, ours, their reference, our reference, their tokenizer)."""
    folder = tmp_path_factory.mktemp("peers")
    with foreign_warnings():
        from transformers import AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

        tokenizer.save(folder / "tokenizer")
        models = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            config = SmolLM3Config(
                vocab_size=tokenizer.vocab_size,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.3,
                pad_token_id=tokenizer.pad_id,
                bos_token_id=None,
                eos_token_id=tokenizer.stop_ids[0],
                attn_implementation="eager",
            )
            theirs = SmolLM3ForCausalLM(config).eval()
            theirs.save_pretrained(folder / str(seed))
            models.append((theirs, checkpoint.load_model(folder / str(seed))))
        (theirs, ours), (their_reference, our_reference) = models
        return (
            theirs,
            ours,
            their_reference,
            our_reference,
            AutoTokenizer.from_pretrained(folder / "tokenizer"),
        )


def our_batch(inputs, weights_BT, pairs=()):
    ids_BT = inputs["input_ids"]
    return Batch(
        ids_BT[:, :-1],
        ids_BT[:, 1:],
        weights_BT[:, 1:].float(),
        torch.zeros_like(ids_BT[:, :-1]),
        {},
        pairs,
    )


def hidden(model, batch):
    return model.hidden(batch.ids_BT, attend=packed(batch.documents_BT))


def assert_same_gradients(theirs, ours):
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    from smollm3.checkpoint.hf import published_name

    for name, parameter in ours.named_parameters():
        assert_close_to_rounding(parameter.grad, expected[published_name(name)], name)
    theirs.zero_grad()
    ours.zero_grad()


def assert_close_to_rounding(ours, theirs, name):
    """Equal within 1e-4 of the tensor's own size. A single element may be a sum of large terms that
    cancel, whose last bits depend on the order of the sum and so on the processor."""
    distance = (ours - theirs).norm() / theirs.norm()
    assert distance < 1e-4, f"{name}: {float(distance):.1e} of the gradient's norm apart"
    farthest = (ours - theirs).abs().max() / theirs.abs().max()
    assert farthest < 1e-3, f"{name}: an element is {float(farthest):.1e} of the largest apart"


def test_sft_on_assistant_tokens(peers, tmp_path):
    theirs, ours, *_, tokenizer = peers
    with foreign_warnings():
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        rows = [{"messages": turns(p, a)} for p, a in zip(PROMPTS, CHOSEN, strict=True)]
        trainer = SFTTrainer(
            model=theirs,
            args=SFTConfig(
                str(tmp_path),
                assistant_only_loss=True,
                per_device_train_batch_size=3,
                max_length=2048,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        inputs = next(iter(trainer.get_train_dataloader()))
        theirs.eval()
        expected = trainer.compute_loss(theirs, dict(inputs))
    expected.backward()

    batch = our_batch(inputs, inputs["labels"] != -100)
    assert 0 < batch.weights_BT.sum() < 150  # some tokens, and not the headers' many
    sums = losses.language_modelling(ours, hidden(ours, batch), batch)
    loss = sums.total / sums.weight
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(theirs, ours)


@pytest.mark.parametrize(
    ("loss", "theirs_is_called"),
    [("apo_zero", "apo_zero"), ("apo_down", "apo_down"), ("dpo", "sigmoid")],
)
def test_preference_losses(peers, tmp_path, loss, theirs_is_called):
    theirs, ours, their_reference, our_reference, tokenizer = peers
    with foreign_warnings():
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        rows = [
            {
                "prompt": turns(p, "")[:1],
                "chosen": turns(p, c)[1:],
                "rejected": turns(p, r)[1:],
            }
            for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=True)
        ]
        trainer = DPOTrainer(
            model=theirs,
            ref_model=their_reference,
            args=DPOConfig(
                str(tmp_path),
                loss_type=theirs_is_called,
                beta=BETA,
                per_device_train_batch_size=3,
                max_length=2048,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        inputs = next(iter(trainer.get_train_dataloader()))
        theirs.eval()
        expected = trainer._compute_loss(theirs, dict(inputs), return_outputs=False)
        metrics = {k: v[-1] for k, v in trainer._metrics["eval"].items()}
    expected.backward()

    batch = our_batch(inputs, inputs["completion_mask"], tuple(("x", i) for i in range(3)))
    with torch.no_grad():
        reference_B = losses.log_probs(our_reference, hidden(our_reference, batch), batch).sum(-1)
    sums = losses.preference(ours, hidden(ours, batch), batch, reference_B, loss=loss, beta=BETA)
    mean = sums.total / sums.weight
    mean.backward()
    assert mean.item() == pytest.approx(expected.item(), abs=1e-5)
    margin, accuracy = (float(x) / sums.weight for x in sums.metrics)
    assert abs(margin) > 0.1  # far from the reference, so that the formulas differ
    assert margin == pytest.approx(metrics["rewards/margins"], abs=1e-4)
    assert accuracy == pytest.approx(metrics["rewards/accuracies"], abs=1e-6)
    assert_same_gradients(theirs, ours)
