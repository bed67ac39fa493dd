"""Lists of molecules: complete, canonical, without what would not keep."""

import pytest

from mfm.labelling.enumeration import enumerate_molecules, ions, pairs, radicals
from mfm.labelling.geometries import canonical_smiles, spin_multiplicity


@pytest.mark.parametrize(("n_heavy", "n_graphs"), [(1, 4), (2, 19), (3, 94), (4, 621)])
def test_every_graph_is_found(n_heavy: int, n_graphs: int) -> None:
    """Counts of an independent enumeration of C, N, O, F."""
    assert len(enumerate_molecules(["C", "N", "O", "F"], n_heavy, keep_unstable=True)) == n_graphs


def test_what_would_not_keep_is_left_out() -> None:
    found = enumerate_molecules(["C", "N", "O"], 3)
    assert {"CCO", "C1CC1", "CC#N", "COC", "NC=O", "O=CO"} <= set(found)
    assert not {"OOO", "NNN", "C=CO", "C1=CC1", "OCO", "C=C=C", "CON"} & set(found)
    assert all(canonical_smiles(smiles) == smiles for smiles in found)


@pytest.mark.parametrize(
    ("elements", "n_heavy", "message"),
    [
        (["C", "Xe"], 2, r"elements to enumerate must be among B, C, .*, got Xe"),
        (["C"], 7, r"1 to 6 heavy atoms, got 7"),
    ],
)
def test_what_cannot_be_enumerated(elements: list[str], n_heavy: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enumerate_molecules(elements, n_heavy)


def test_ions_and_radicals() -> None:
    assert ions("CC(=O)O") == ["CC(=O)[O-]", "CC(=O)[OH2+]", "CC(O)=[OH+]"]
    assert ions("CC") == []
    assert ions("CS") == ["C[S-]"]
    assert ions("c1cc[nH]c1") == ["c1cc[n-]c1"]
    assert radicals("CC(=O)O") == ["CC([O])=O", "[CH2]C(=O)O"]
    assert [spin_multiplicity(smiles) for smiles in radicals("CCO")] == [2, 2, 2]


def test_pairs_are_distinct_and_seeded() -> None:
    found = pairs(["O", "CO", "N"], 4, seed=1)
    assert len(set(found)) == 4
    assert pairs(["N", "CO", "O"], 4, seed=1) == found
    assert len(pairs(["O", "CO", "N"], 99, seed=1)) == 6
