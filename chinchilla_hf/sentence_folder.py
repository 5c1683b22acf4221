"""
What makes the folder of an encoder one that `sentence_transformers.SentenceTransformer(folder)` takes, mean pooling and
normalising included. Without these files, it takes any encoder, and asks nobody how to pool.

The format is that of sentence-transformers 2, which later versions read.
"""

import json
import os
from pathlib import Path

from .run_record import write_atomically

POOLING_FOLDER, SENTENCE_MODULES = "1_Pooling", "modules.json"


def write_sentence_folder(folder: str | os.PathLike[str], hidden_size: int, max_length: int) -> None:
    """
    Put these files into the folder of a checkpoint.

    Args:
        folder: with model and tokenizer.
        hidden_size: of the model.
        max_length: longer texts are cut at so many tokens.

    Raises:
        OSError: the folder cannot be written.
    """
    kinds = {"": "Transformer", POOLING_FOLDER: "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling: dict[str, int | bool] = {"word_embedding_dimension": hidden_size}
    pooling |= {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")}
    files = {
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        f"{POOLING_FOLDER}/config.json": pooling,
        SENTENCE_MODULES: modules,  # the last: by it, the folder is read as one of theirs
    }
    for name, content in files.items():
        write_atomically(Path(folder) / name, f"{json.dumps(content, indent=2)}\n".encode())
