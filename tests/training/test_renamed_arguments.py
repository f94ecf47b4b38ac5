"""Descriptions and checkpoints written when arguments had other names."""

import numpy as np
import pytest

from gpucnn import initializers, layers, losses, optimizers, schedules
from gpucnn.errors import ArgumentError, UnknownNameError
from tests.training.test_model import small_model

GROUP = {"Group": "Group", "match": "*.bias", "rate": 2.0, "epochs": 3}
FORMER = [
    (layers.Layer, {"Layer": "Normalization", "mean": 0.5, "deviation": 0.25}, "Normalization(mean=0.5, std=0.25)"),
    (initializers.Initializer, {"Initializer": "Dirac", "rest": "zeros"}, "Dirac(remaining='zeros')"),
    (optimizers.Group, GROUP, "Group('*.bias', lr_multiplier=2.0, train_epochs=3)"),
    (
        schedules.Schedule,
        {"Schedule": "OneCycle", "rate": 0.1, "rise": 0.5, "initial": 0.2, "final": 0.01},
        "OneCycle(0.1, warmup_fraction=0.5, start_factor=0.2, end_factor=0.01)",
    ),
    (
        optimizers.Optimizer,
        {"Optimizer": "Muon", "other": {"Optimizer": "SGD", "learning_rate": 0.5, "groups": [GROUP]}},
        "Muon(fallback=SGD(learning_rate=0.5, groups=(Group('*.bias', lr_multiplier=2.0, train_epochs=3),)))",
    ),
]


@pytest.mark.parametrize(("family", "description", "expected"), FORMER, ids=[repr_ for *_, repr_ in FORMER])
def test_former_arguments_of_a_description_are_read(family, description, expected):
    assert repr(family.from_config(description)) == expected


@pytest.mark.parametrize(
    ("kind", "former", "now"),
    [
        (layers.Normalization, "deviation", "std"),
        (initializers.Dirac, "rest", "remaining"),
        (optimizers.Group, "rate", "lr_multiplier"),
        (optimizers.Group, "epochs", "train_epochs"),
        (schedules.OneCycle, "rise", "warmup_fraction"),
        (schedules.OneCycle, "initial", "start_factor"),
        (schedules.OneCycle, "final", "end_factor"),
        (optimizers.Muon, "other", "fallback"),
    ],
)
def test_former_arguments_in_code_are_refused_with_their_names_of_now(kind, former, now):
    with pytest.raises(ArgumentError, match=f"takes no argument '{former}'; did you mean {now}=…"):
        kind(**{former: None})


def test_former_slots_of_muon_are_read():
    model = small_model(optimizer=optimizers.Muon(fallback=optimizers.SGD(0.1, momentum=0.9)))
    slots = model.optimizer.state_dict(model.backend)
    assert any(name.startswith("fallback/velocity/") for name in slots)
    former = {name.replace("fallback/", "other/"): slot + 1.5 for name, slot in slots.items()}
    model.optimizer.load_state_dict(model.backend, model.optimizer.with_current_slots(former))
    for name, slot in model.optimizer.state_dict(model.backend).items():
        assert np.array_equal(slot, slots[name] + 1.5), name


@pytest.mark.parametrize(
    ("kind", "former", "now"),
    [
        (layers.Layer, "can_skip_input_gradient", "supports_skip_dx"),
        (layers.Layer, "can_apply_relu", "supports_fused_relu"),
        (layers.Layer, "least_batch", "min_batch_size"),
        (layers.Layer, "method", "algorithm"),
        (layers.Layer, "per_sample", "batch_independent"),
        (layers.Layer, "recordable", "capturable"),
        (losses.Loss, "of_classes", "expects_classes"),
    ],
)
def test_former_members_of_a_custom_class_are_refused(kind, former, now):
    with pytest.raises(UnknownNameError, match=f"class Custom: {former} is called {now}"):
        type("Custom", (kind,), {former: True})
