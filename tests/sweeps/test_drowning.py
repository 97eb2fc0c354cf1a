"""The temperature at which sweeps/drowning.py compares a student with its teacher."""

import runpy
from pathlib import Path

import pytest
import torch

script = runpy.run_path(str(Path(__file__).parents[2] / "sweeps" / "drowning.py"))
at_entropy, entropy = script["at_entropy"], script["entropy"]


@pytest.mark.parametrize("target", [0.05, 0.5, 1.3])
def test_answers_are_brought_to_an_entropy_by_their_temperature_alone(target):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    scaled = at_entropy(logits, target)
    assert entropy(scaled) == pytest.approx(target, abs=1e-6)
    temperature = logits / scaled
    assert temperature.min() == pytest.approx(float(temperature.max()), rel=1e-6)


def test_entropy_is_in_nats():
    assert entropy(torch.zeros(3, 4)) == pytest.approx(torch.tensor(4.0).log())
