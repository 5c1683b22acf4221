"""A number of parameters or a time is met, or the message says what comes nearest."""

import pytest
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaForSequenceClassification
from chinchilla_hf.compression.pruning import choose_parts, magnitude_scores, prune
from chinchilla_hf.compression.targets import milliseconds_of, share_for, smallest_parts


def make_model() -> ChinchillaForSequenceClassification:
    return ChinchillaForSequenceClassification(make_tiny_config(num_labels=3, intermediate_size=256)).eval()


def parameters(model) -> int:
    return model.num_parameters()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_as_many_parameters_as_are_allowed(share):
    model = make_model()
    scores = magnitude_scores(model)
    smallest = make_model()
    prune(smallest, smallest_parts(scores))
    least, most = parameters(smallest), parameters(model)
    target = round(least + share * (most - least))
    found = share_for(model, scores, 8, parameters, target, "parameters")
    assert parameters(model) == most
    prune(model, choose_parts(model.config, scores, found, 8))
    step = 3 * (most - least) / 28  # a head, or a group of neurons
    assert target - step <= parameters(model) <= target


def test_nothing_has_to_go():
    model = make_model()
    assert share_for(model, magnitude_scores(model), 8, parameters, parameters(model), "parameters") == 1


def test_a_target_that_cannot_be_met_says_the_nearest():
    model = make_model()
    with pytest.raises(ValueError, match=r"the target is 1 parameters, but a head and 16 neurons .* have \d+"):
        share_for(model, magnitude_scores(model), 8, parameters, 1, "parameters")


def test_milliseconds_leave_the_model_as_it_was():
    model = make_model().train()
    assert 0 < milliseconds_of(model, 8, calls=3) < 10_000
    assert model.training
