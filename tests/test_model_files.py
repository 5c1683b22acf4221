"""The files that travel in checkpoints follow the structure that Transformers demands of its own models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import chinchilla_hf

# The licence header of Transformers itself; notes on which published checkpoints take which path; a configuration
# docstring that is generated, where ours is written.
RULES_OFF = {"TRF028", "TRF041", "TRF057"}


def lint(path: Path, report: Path) -> list[dict]:
    command = [sys.executable, "-m", "mlinter", "--no-progress", "--no-cache", "--output-json", str(report), str(path)]
    subprocess.run(command, capture_output=True, check=False)  # its exit status counts the rules that are off, too
    return [finding for finding in json.loads(report.read_text())["findings"] if finding["rule"] not in RULES_OFF]


def test_mlinter_finds_nothing(tmp_path):
    pytest.importorskip("mlinter")
    package = Path(chinchilla_hf.__file__).parent
    assert lint(package, tmp_path / "report.json") == []
    # It does look: an assert in a model file is a finding.
    (tmp_path / "modeling_chinchilla.py").write_text((package / "modeling_chinchilla.py").read_text() + "\nassert 1\n")
    assert "TRF027" in {finding["rule"] for finding in lint(tmp_path, tmp_path / "report.json")}
