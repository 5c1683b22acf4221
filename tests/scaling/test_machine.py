"""What the machine can do: measured by real steps, kept by hardware, and refused where it is of another machine."""

import dataclasses
import json

import pytest
import torch

from chinchilla_hf.scaling import machine
from chinchilla_hf.scaling.machine import (
    LatencyLimit,
    MachineError,
    MachineProfile,
    Measured,
    MemoryWatch,
    available_memory,
    hardware_of,
    larger_takes_longer,
    machine_profile,
)
from chinchilla_hf.scaling.shapes import LADDER, Shape

SMALL, LARGE = Shape.of_width(32), Shape.of_width(128)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """Measured in a second or two, of both objectives, and where they are kept."""
    cache = tmp_path_factory.mktemp("machines")
    return {
        objective: machine_profile(objective, 300, 32, seconds=1.5, cache_dir=cache)
        for objective in ("masked", "causal")
    }, cache


def made(*measured: Measured) -> MachineProfile:
    return MachineProfile(hardware_of("cpu"), "masked", 300, 32, measured, 8e9, 1e9)


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_steps_are_measured(profiles, objective):
    profile = profiles[0][objective]
    assert profile.objective == objective and len(profile.measured) >= 2
    for point in profile.measured:
        assert 0 < point.fixed_seconds < 10 and 0 < point.row_seconds < 10
    assert profile.seconds(SMALL, 8) < profile.seconds(SMALL, 80)
    assert profile.seconds(SMALL, 32) < profile.seconds(Shape.of_width(512), 32)
    assert profile.memory(SMALL, 8) < profile.memory(Shape.of_width(1024), 8)
    assert profile.memory_bytes > profile.base_bytes > 0


def test_a_profile_is_kept_by_hardware_and_models(profiles, monkeypatch):
    found, cache = profiles

    def no_measuring(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(machine, "measure_shapes", no_measuring)
    assert machine_profile("masked", 300, 32, cache_dir=cache) == found["masked"]
    for other in ({"objective": "masked", "vocab_size": 301}, {"objective": "masked", "vocab_size": 300, "row": 64}):
        with pytest.raises(AssertionError, match="measured again"):
            machine_profile(other["objective"], other["vocab_size"], other.get("row", 32), cache_dir=cache)
    with pytest.raises(AssertionError, match="measured again"):
        machine_profile("masked", 300, 32, cache_dir=cache, anew=True)


def test_between_measured_shapes_and_beyond_them():
    profile = made(Measured(SMALL, 0.01, 0.001, 1e6, 1e5), Measured(LARGE, 0.02, 0.01, 1e7, 1e6))
    assert profile.seconds(SMALL, 10) == pytest.approx(0.02)
    assert profile.seconds(LARGE, 10) == pytest.approx(0.12)
    assert profile.memory(LARGE, 10) == pytest.approx(1e9 + 2e7)
    between = profile.seconds(Shape.of_width(64), 10)
    assert 0.02 < between < 0.12
    # Twice the FLOPs take twice the time.
    huge = Shape.of_width(512)
    ratio = huge.flops_per_token("masked", 300, 32) / LARGE.flops_per_token("masked", 300, 32)
    assert profile.seconds(huge, 1000) == pytest.approx(1000 * 0.01 * ratio, rel=0.3)


def test_noise_does_not_make_a_larger_shape_the_faster_one():
    times = [(1.0, 2.0), (2.0, 8.0), (6.0, 4.5), (5.0, 9.0)]
    shapes = [Shape.of_width(width) for width in (32, 64, 128, 256)]
    measured = [Measured(shape, fixed, row, 10.0, 1.0) for shape, (fixed, row) in zip(shapes, times, strict=True)]
    mended = larger_takes_longer(measured)
    assert [point.shape for point in mended] == shapes and {point.fixed_bytes for point in mended} == {10.0}
    assert [point.fixed_seconds for point in mended] == pytest.approx([1, 2, 30**0.5, 30**0.5])
    assert [point.row_seconds for point in mended] == pytest.approx([2, 6, 6, 9])


def test_a_profile_comes_back_as_it_was_written(tmp_path):
    profile = made(Measured(SMALL, 0.01, 0.001, 1e6, 1e5))
    profile.write(tmp_path / "machine.json")
    assert MachineProfile.read(tmp_path / "machine.json") == profile
    (tmp_path / "machine.json").write_text(json.dumps({"hardware": {}}))
    with pytest.raises(MachineError, match=r"machine\.json is no machine profile .* measure the machine anew"):
        MachineProfile.read(tmp_path / "machine.json")


def test_a_profile_of_another_machine_is_refused():
    profile = made(Measured(SMALL, 0.01, 0.001, 1e6, 1e5))
    profile.check("masked", 300, 32)
    other = dataclasses.replace(profile, hardware={**profile.hardware, "cpu": "another one", "cpus": 64})
    with pytest.raises(MachineError, match=r"cpu another one, here .*; cpus 64, here \d+\): measure this machine"):
        other.check("masked", 300, 32)
    with pytest.raises(MachineError, match="objective masked, here causal; vocab_size 300, here 400"):
        profile.check("causal", 400, 32)


def test_memory_that_is_taken_is_seen():
    watch = MemoryWatch(torch.device("cpu"))
    if watch.bytes() == 0.0 and not machine._forget_peak():
        pytest.skip("this system does not tell the peak of a process anew")
    ballast = torch.ones(8 << 20)
    assert watch.bytes() >= 0.9 * 4 * ballast.numel()
    del ballast
    assert MemoryWatch(torch.device("cpu")).bytes() < 16 << 20
    assert available_memory() > 1 << 28


def test_the_time_of_an_answer_is_a_limit():
    calls = []

    class Counted(LatencyLimit):
        def measure(self, shape, repeats=15):
            calls.append(shape)
            return {32: 0.001, 64: 0.003}.get(shape.hidden_size, 0.009)

    limit = Counted(0.002, "masked", 300)
    assert [limit(Shape.of_width(width)) for width in (32, 64, 128, 256)] == [True, False, False, False]
    assert [shape.hidden_size for shape in calls] == [32, 64]  # what is larger than a slow one is not measured
    assert 0 < LatencyLimit(1, "causal", 300).measure(LADDER[0], repeats=4) < 10
    with pytest.raises(ValueError, match="the limit is 0 s, expected a number above 0"):
        LatencyLimit(0, "masked", 300)
