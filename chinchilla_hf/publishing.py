"""
Before a folder goes to the Hub: what is wrong with it. And the way there, in one commit.

    problems = check_folder("runs/tweets")          a list of sentences; empty: nothing is wrong
    publish("runs/tweets", "me/tweets", tag="v1")
"""

import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import save
from transformers import TrainingArguments

from . import __version__
from .model_card import rewrite_model_card
from .output_folder import RUN_RECORD
from .run_record import RunRecord, write_atomically

# What a training leaves in its folder beside the model.
LEFT_BEHIND = ["checkpoint-*", "runs/*", "stages/*", "*.log", "*.tmp"]
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
PACKAGE = Path(__file__).parent
EXPORT_RECORD = "export.json"
# The Hub's identifiers (huggingface.co/docs/hub/repositories-licenses), one a line.
LICENSES = frozenset((PACKAGE / "templates" / "licenses.txt").read_text(encoding="utf-8").split())


# Of whatever HTTP client huggingface_hub is built on. Large files that do not get there are a RuntimeError.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


class PublishError(ValueError):
    """Why a folder does not go to the Hub."""


@dataclass(frozen=True)
class Published:
    """
    Where a folder is.

    Args:
        url: of the repository.
        commit: its hash.
        files: how many went there.
    """

    url: str
    commit: str
    files: int


def files_of(folder: str | os.PathLike[str]) -> list[Path]:
    """What of `folder` belongs on the Hub, by path: not what a training leaves, and nothing hidden."""
    folder = Path(folder)
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        left = any(fnmatch.fnmatch(str(relative), pattern) for pattern in LEFT_BEHIND)
        if path.is_file() and not hidden and not left:
            found.append(path)
    return found


def check_folder(folder: str | os.PathLike[str], *, load: bool = True) -> list[str]:
    """
    What is wrong with the folder of a checkpoint or an export, in sentences that say what to do.

    Args:
        folder: of a finished run, or an export.
        load: also load it in a process that does not have this package, which takes some seconds.

    Raises:
        PublishError: there is no such folder, or it holds neither a checkpoint nor an export.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PublishError(f"{folder} is no folder: give that of a finished run, or of an export")
    exported = (folder / EXPORT_RECORD).is_file()
    if not exported and not (folder / "config.json").is_file():
        raise PublishError(f"{folder} has no config.json: give the folder of a finished run, or of an export")
    problems = [
        f"{path.relative_to(folder)} may hold a pickle, which runs whatever is in it: save as safetensors, or delete it"
        for path in files_of(folder)
        if path.suffix in PICKLES
    ]
    problems += _card_problems(folder)
    if not exported:
        problems += _record_problems(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        problems += _label_problems(config)
        if not [*folder.glob("model*.safetensors")]:
            problems.append("there is no model.safetensors: let the run end")
        problems += [
            f"{name} differs from that of chinchilla_hf {__version__}, so the two may compute different things: add "
            "--refresh_code true"
            for name in stale_code(folder)
        ]
        if load and not problems:
            problems += _load_problems(folder, config)
    return problems


def _record_problems(folder: Path) -> list[str]:
    if not (folder / "run.json").is_file():
        return ["there is no run.json, so nobody can look up how the model was made: publish the folder of a run"]
    record = RunRecord.read(folder / "run.json")
    problems = []
    if record.status != "finished":
        problems.append(f"run.json says {record.status!r}: let the run end")
    if not record.data.get("name") or not record.data.get("fingerprint"):
        problems.append("run.json does not name its data and their fingerprint: publish the folder of a run")
    return problems


def _card_problems(folder: Path) -> list[str]:
    path = folder / "README.md"
    if not path.is_file():
        return ["there is no README.md, the card: let the run end, or write one with chinchilla_hf.model_card"]
    try:
        data = ModelCard.load(path).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        return [f"README.md has metadata that cannot be read ({' '.join(str(error).split())}): write the card anew"]
    problems = []
    license = data.get("license")
    if license is None:
        problems.append("the card names no licence: give --license, such as apache-2.0, or other")
    elif str(license).lower() not in LICENSES:
        problems.append(f"the card's licence is {license!r}, which the Hub does not know: give one of its identifiers")
    if str(license).lower() == "other" and not data.get("license_name"):
        problems.append("the card's licence is 'other', without a license_name: give --license_name")
    for code in _as_list(data.get("language")):
        if not is_language(code):
            problems.append(f"the card's language is {code!r}: give a code of ISO 639, such as en or deu")
    if not data.get("pipeline_tag") and not data.get("library_name"):
        problems.append("the card says neither pipeline_tag nor library_name, by which the Hub runs it: write it anew")
    return problems


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [str(item) for item in (value if isinstance(value, list) else [value])]


def is_language(code: str) -> bool:
    """Whether it is a code of ISO 639, alone or with a script or region, or `multilingual`, which the Hub knows."""
    import langcodes  # only here, because it reads a table

    return code == "multilingual" or bool(langcodes.tag_is_valid(code))


def _label_problems(config: dict[str, Any]) -> list[str]:
    """Of a model that classifies: a name for every class, and none that nobody gave."""
    names, ids = config.get("id2label"), config.get("label2id")
    if not names:
        return []
    if sorted(map(int, names)) != list(range(len(names))):
        return [f"id2label of config.json has the classes {', '.join(names)}, expected 0 to {len(names) - 1}"]
    if ids is not None and {name: int(number) for number, name in names.items()} != ids:
        return ["id2label and label2id of config.json disagree: set both, each the inverse of the other"]
    if all(name == f"LABEL_{number}" for number, name in names.items()) and len(names) > 1:
        return ["id2label of config.json has no names but LABEL_0, LABEL_1, ...: give the classes theirs"]
    return []


def code_files(folder: Path) -> list[Path]:
    """Files of this package's code that travel in a checkpoint."""
    return [path for path in sorted(folder.glob("*.py")) if (PACKAGE / path.name).is_file()]


def stale_code(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the code files of a checkpoint that are not those of this version of the package."""
    return [path.name for path in code_files(Path(folder)) if path.read_bytes() != (PACKAGE / path.name).read_bytes()]


def refresh_code(folder: str | os.PathLike[str]) -> list[str]:
    """Replace code files of a checkpoint by those of this version of the package; their names."""
    names = stale_code(folder)
    for name in names:
        write_atomically(Path(folder) / name, (PACKAGE / name).read_bytes())
    return names


def halve_weights(folder: str | os.PathLike[str]) -> int:
    """
    Store the float32 weights of a checkpoint as float16, in half the bytes. It is loaded as what `dtype` of its config
    says, float32, whatever the file holds: what changes is the rounding of weights, by less than one part in 2,000.

    Returns:
        The bytes of the weights afterwards.

    Raises:
        PublishError: a weight is too large for float16, which ends at 65,504; the files are as they were.
    """
    paths = sorted(Path(folder).glob("model*.safetensors"))
    written = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.dtype == torch.float32:
                tensors[name] = tensor.half()
                if not tensors[name].isfinite().all():
                    raise PublishError(f"{name} of {path} has weights above 65,504, too large for float16: leave them")
        written[path] = save(tensors, metadata)
    for path, content in written.items():
        write_atomically(path, content)
    return sum(map(len, written.values()))


# Loads a checkpoint where this package cannot be imported, as on the machine of a stranger.
_LOADER = """
import sys
sys.modules["chinchilla_hf"] = None
import transformers
folder, *names = sys.argv[1:]
transformers.logging.set_verbosity_error()
transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
for name in names:
    model, found = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if missing:
        sys.exit(f"{name}: the weights of {', '.join(missing[:3])} are not in the folder")
"""


def _load_problems(folder: Path, config: dict[str, Any]) -> list[str]:
    architectures = config.get("architectures") or []
    names = [
        auto_class
        for auto_class, place in config.get("auto_map", {}).items()
        if auto_class.startswith("AutoModel") and str(place).rpartition(".")[2] in architectures
    ]
    if not names:
        return ["auto_map of config.json does not name the class of the model: save the model anew with this package"]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        ended = subprocess.run(
            [sys.executable, "-c", _LOADER, str(folder.resolve()), names[0]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode == 0:
        return []
    lines = ended.stderr.strip().splitlines() or ["no message"]
    return [f"it does not load without this package ({lines[-1]}): save the model anew with this package"]


def complete_card(folder: str | os.PathLike[str], **metadata: Any) -> None:
    """
    Put `metadata` (`license`, `license_name`, `language`, ...) into the card; what is `None` stays as it is.

    Raises:
        PublishError: there is no card.
    """
    path = Path(folder) / "README.md"
    given = {name: value for name, value in metadata.items() if value is not None}
    if not given:
        return
    if not path.is_file():
        raise PublishError(f"{path} is not there: let the run end, which writes the card")
    card = ModelCard.load(path)
    for name, value in given.items():
        setattr(card.data, name, value)
    write_atomically(path, f"{str(card).rstrip()}\n".encode())


def describe_data(folder: str | os.PathLike[str], description: str) -> None:
    """
    Say in the record and in the card of a run what its data are, where their name does not: sources and licences.

    Raises:
        PublishError: there is no record of a run.
    """
    path = Path(folder) / RUN_RECORD
    if not path.is_file():
        raise PublishError(f"{path} is not there: data are described in the folder of a run")
    record = RunRecord.read(path)
    record.data["description"] = description
    record.write(path)
    rewrite_model_card(record, Path(folder) / "README.md")


def publish(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = True,
    revision: str | None = None,
    tag: str | None = None,
    message: str = "Upload with chinchilla_hf",
    token: str | None = None,
) -> Published:
    """
    Put the folder on the Hub in one commit, which holds all or nothing. Large files that got there before a connection
    broke are not sent again.

    Args:
        folder: see [`files_of`]; not checked here, see [`check_folder`].
        repo_id: `owner/name`, or a name of one's own; made if it is not there.
        private: whether a new repository is private, `None`: as the owner's are by default; one that is there stays
            what it is.
        revision: a branch, made if it is not there; `main` if not given.
        tag: of the commit.
        message: of the commit.
        token: the one that is logged in if not given.

    Raises:
        PublishError: nobody is logged in, the token is wrong or may not write there, the tag is there already, or the
            connection broke; the message says which, and what to do.
    """
    api = HfApi(token=token)
    with _told_plainly(api, repo_id):
        user = api.whoami()["name"]
        full_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        tags = api.list_repo_refs(full_id).tags if tag is not None and api.repo_exists(full_id) else []
        if any(found.name == tag for found in tags):
            raise PublishError(f"{full_id} has a tag {tag!r} already: choose another --tag")
        url = api.create_repo(full_id, private=private, exist_ok=True)
        branch = revision or "main"
        if branch != "main":
            api.create_branch(full_id, branch=branch, exist_ok=True)
        files = files_of(folder)
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        commit = api.create_commit(full_id, additions, commit_message=message, revision=branch)
        if tag is not None:
            api.create_tag(full_id, tag=tag, revision=commit.oid)
    return Published(str(url), commit.oid, len(files))


@contextlib.contextmanager
def _told_plainly(api: HfApi, repo_id: str) -> Iterator[None]:
    """What the Hub and the network raise, as a `PublishError` in one line."""
    try:
        yield
    except (OSError, RuntimeError, HTTP_ERROR) as error:
        raise PublishError(_reason(error, f"{repo_id} on {api.endpoint}")) from error


def _reason(error: Exception, where: str) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return f"nobody is logged in who could write to {where}: run `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError):
        return f"{where} cannot be found or written with this token: check its name, and what the token may do"
    if status == 401:
        return f"the token is wrong or has expired ({where}): run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write to {where}: choose a name of your own, or a token that may"
    lines = str(error).splitlines() or [repr(error)]
    return f"the upload to {where} broke off ({lines[0]}): nothing changed there; the same command goes on"


def check_login(repo_id: str, token: str | None = None) -> None:
    """
    Fail now, and not after long work, if nobody is logged in who could upload.

    Args:
        repo_id: for the message.
        token: the one that is logged in if not given.

    Raises:
        PublishError: the token is missing or wrong, or the Hub cannot be reached.
    """
    api = HfApi(token=token)
    with _told_plainly(api, repo_id):
        api.whoami()


def check_access(options: TrainingArguments) -> None:
    """[`check_login`] for a training that is to be pushed."""
    check_login(options.hub_model_id or "a repository", options.hub_token)


def push_folder(folder: Path, options: TrainingArguments, message: str) -> str:
    """
    Put the folder of a finished run on the Hub, as [`publish`] does.

    Args:
        folder: of the run.
        options: `hub_model_id`, by default the name of the folder, `hub_private_repo`, `hub_revision`, `hub_token`.
        message: of the commit.

    Returns:
        The address.

    Raises:
        PublishError: see [`publish`].
    """
    published = publish(
        folder,
        options.hub_model_id or folder.resolve().name,
        private=options.hub_private_repo,
        revision=options.hub_revision,
        message=message,
        token=options.hub_token,
    )
    return published.url
