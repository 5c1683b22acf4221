"""Upload of a finished folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments


def check_access(options: TrainingArguments) -> None:
    """
    Fail now, and not after the training, if nobody is logged in who could upload.

    Raises:
        OSError: the token is missing or wrong, or the Hub cannot be reached.
    """
    HfApi(token=options.hub_token).whoami()


def push_folder(folder: Path, options: TrainingArguments, commit_message: str) -> str:
    """
    Upload the model in `folder`, code files included and checkpoints left out, in one commit.

    Args:
        folder: of a finished run.
        options: `hub_model_id`, by default the name of the folder, `hub_private_repo`, `hub_revision`, `hub_token`.
        commit_message: what the Hub shows of it.

    Returns:
        The address.
    """
    api = HfApi(token=options.hub_token)
    repo_id = api.create_repo(
        options.hub_model_id or folder.resolve().name, private=options.hub_private_repo, exist_ok=True
    ).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        ignore_patterns=["checkpoint-*", "checkpoint-*/**", "runs/**", ".*"],
        revision=options.hub_revision,
        commit_message=commit_message,
    )
    return f"{api.endpoint}/{repo_id}"
