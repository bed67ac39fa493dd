import dataclasses

import pytest
import torch

from mfm.evaluation.checks import checkpoint_problems, consistency_problems, probe_structure
from mfm.heads import TaskConfig
from mfm.longrange import LatentEwaldConfig
from mfm.potential import Potential
from tests.tiny import tiny_model


@pytest.mark.parametrize("long_range", [None, LatentEwaldConfig()], ids=["short range", "long range"])
def test_a_sound_model_has_no_problems(long_range):
    assert consistency_problems(tiny_model(long_range=long_range)) == []


def test_charges_and_moments_are_checked_with_and_without_energies(monkeypatch):
    """A dipole at a level without energies is no reason to fail, and one that depends on the place is."""
    tasks = {"energy_dft": TaskConfig(), "dipole_ccsdt": TaskConfig()}
    model, alone = tiny_model(tasks), tiny_model({"charges_dft": TaskConfig(), "dipole_dft": TaskConfig()})
    alone.domain = dataclasses.replace(alone.domain, references={}, atomic_numbers=(1, 6, 8))
    assert consistency_problems(model) == consistency_problems(alone) == []
    original = Potential.evaluate

    def wrong(self, structure, **options):
        found = original(self, structure, **options)
        shifted = {name: value + structure.positions[0, 0] for name, value in found.quantities.items()}
        return dataclasses.replace(found, quantities=shifted)

    monkeypatch.setattr(Potential, "evaluate", wrong)
    text = " ".join(consistency_problems(alone))
    assert "dft: translation changes the size of dipole by" in text
    assert "dft: rotation changes the size of charges by" in text


def test_wrong_forces_are_found(monkeypatch):
    original = Potential.evaluate

    def wrong(self, structure, forces=(), **options):
        found = original(self, structure, forces, **options)
        return dataclasses.replace(found, forces={name: 1.01 * value for name, value in found.forces.items()})

    monkeypatch.setattr(Potential, "evaluate", wrong)
    problems = consistency_problems(tiny_model())
    assert len(problems) == 2
    assert "dft: forces of" in problems[0]
    assert "differ from the slope of the energy by" in problems[0]


def test_an_energy_that_depends_on_the_place_is_found(monkeypatch):
    original = Potential.evaluate

    def wrong(self, structure, forces=(), **options):
        found = original(self, structure, forces, **options)
        shift = float(structure.positions[0, 0])
        return dataclasses.replace(found, energies={name: value + shift for name, value in found.energies.items()})

    monkeypatch.setattr(Potential, "evaluate", wrong)
    text = " ".join(consistency_problems(tiny_model()))
    for name in ("rotation", "translation", "permutation"):
        assert f"{name} changes the energy" in text


def test_what_is_no_checkpoint_is_a_problem(tmp_path):
    (tmp_path / "model.mfm").write_text("hello")
    (problem,) = checkpoint_problems(tmp_path / "model.mfm")
    assert "is no checkpoint" in problem


def test_the_probe_is_one_that_the_model_knows():
    model = tiny_model(dtype=torch.float64)
    structure = probe_structure(model)
    assert structure is not None
    model.domain.check(structure)
    structure.check_distances()
