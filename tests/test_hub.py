"""What goes up to the Hub of a finished folder, with a Hub that only notes it."""

import fnmatch

from chinchilla_hf import hub
from chinchilla_hf.training_arguments import FineTuningArguments


def test_a_folder_is_uploaded_without_what_the_training_left(tmp_path, monkeypatch):
    calls = {}

    class Hub:
        endpoint = "https://hub"

        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, name, **options):
            calls["create_repo"] = name, options
            return type("Repository", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **options):
            calls["upload_folder"] = options

    monkeypatch.setattr(hub, "HfApi", Hub)
    folder = tmp_path / "answers"
    options = FineTuningArguments(output_dir=str(folder), hub_token="secret", hub_private_repo=True, report_to="none")
    assert hub.push_folder(folder, options, "Upload") == "https://hub/me/answers"
    assert calls["token"] == "secret" and calls["create_repo"] == ("answers", {"private": True, "exist_ok": True})
    uploaded = calls["upload_folder"]
    assert (uploaded["repo_id"], uploaded["folder_path"], uploaded["commit_message"]) == (
        "me/answers",
        folder,
        "Upload",
    )
    for name, goes_up in {
        "model.safetensors": True,
        "answer_windows.py": True,
        "pipeline_chinchilla_answering.py": True,
        "checkpoint-5/model.safetensors": False,
        "runs/events": False,
        ".saving-x/config.json": False,
    }.items():
        assert any(fnmatch.fnmatch(name, pattern) for pattern in uploaded["ignore_patterns"]) is not goes_up
