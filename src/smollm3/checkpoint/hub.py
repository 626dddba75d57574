"""Model folders to the Hugging Face Hub."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from smollm3.checkpoint.locate import HUB_ID, reason
from smollm3.checkpoint.weights import INDEX
from smollm3.errors import UserError

CARD = "README.md"
WEIGHTS = "model*.safetensors"
# A stage's folder also holds its optimizer and its records, which are nobody else's.
PUBLISHED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
)


def push(folder: Path, repo: str, *, card: str | None = None, private: bool = False) -> str:
    """Upload a Hugging Face folder to `USER/NAME` in one commit and return the commit's address.

    The repository is made if it is missing; what an earlier upload left there and this
    folder lacks is deleted. The token is the one of `hf auth login` or HF_TOKEN.
    card: the model card; the folder's README.md if None.
    Raises UserError for a folder that is no whole model, or what the Hub refuses, with its reason.
    """
    match = HUB_ID.fullmatch(repo)
    if match is None or match["revision"]:
        raise UserError(f"hub:{repo}: not a repository; write hub:USER/NAME")
    files = [folder / name for name in PUBLISHED if (folder / name).is_file()]
    weights = sorted(folder.glob(WEIGHTS))
    if folder / "config.json" not in files or not weights:
        raise UserError(
            f"{folder}: needs config.json and {WEIGHTS} to be uploaded; "
            "make such a folder with --to hf"
        )
    if card is None:
        if not (folder / CARD).is_file():
            raise UserError(f"{folder / CARD}: no such file; write the model card first")
        card = (folder / CARD).read_text(encoding="utf-8")

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    sent = [CommitOperationAdd(CARD, card.encode())]
    sent += [CommitOperationAdd(path.name, path) for path in [*files, *weights]]
    names = {operation.path_in_repo for operation in sent}
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        stale = [
            CommitOperationDelete(name)
            for name in api.list_repo_files(repo)
            if name not in names and (name in PUBLISHED or fnmatch(name, WEIGHTS))
        ]
        commit = api.create_commit(
            repo, [*sent, *stale], commit_message="Upload a model made with smollm3"
        )
    except Exception as e:  # the Hub's and the HTTP library's errors share no base
        raise UserError(f"hub:{repo}: the upload failed: {reason(e)}") from e
    return str(commit.commit_url)
