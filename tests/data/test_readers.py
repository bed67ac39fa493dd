"""Readers of the other formats, against small files written with h5py, numpy and ASE."""

import ase
import ase.db
import h5py
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mfm.data import open_dataset
from mfm.data.readers.spice import formal_charge

HARTREE, BOHR, KCAL = 27.211386245988, 0.529177210903, 0.043364104
RNG = np.random.default_rng(0)
X = np.array([[[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]]) + RNG.uniform(-0.05, 0.05, (4, 3, 3))
F = RNG.normal(size=(4, 3, 3))
E = np.array([-76.0, -76.1, -76.2, -76.3])
Z = np.array([8, 1, 1])


def truncated(path, source):
    """A file like `source` that ends in its middle."""
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return path


@pytest.fixture
def rmd17(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"nuclear_charges": Z, "coords": X, "energies": E, "forces": F, "old_energies": E + 1, "old_forces": F + 1}
    np.savez(path, **arrays)
    return path


def test_rmd17(rmd17):
    store = open_dataset(rmd17)
    assert store.fidelities == ["pbe", "pbe_ts"]
    assert store[2].labels["energy_pbe"] == pytest.approx(-76.2 * KCAL)
    np.testing.assert_allclose(store[2].labels["forces_pbe_ts"], (F[2] + 1) * KCAL, rtol=1e-7)
    np.testing.assert_array_equal(store[2].structure.positions, X[2])
    assert store.card.levels["pbe"].label == "PBE/def2-SVP"
    assert open_dataset(rmd17, fidelity="pbe").labels == ["energy_pbe", "forces_pbe"]
    renamed = open_dataset(rmd17, keys={"energy_dft": "energies"})
    assert renamed.energies("energy_dft")[0] == pytest.approx(E[0] * KCAL)


def test_truncated_npz(tmp_path, rmd17):
    with pytest.raises(ValueError, match=r"format of .* is not known|may be truncated"):
        open_dataset(truncated(tmp_path / "b.npz", rmd17))
    with pytest.raises(ValueError, match=r"cannot read `b.npz` as a numpy archive, it may be truncated"):
        open_dataset(tmp_path / "b.npz", format="rmd17")


def physnet(path, **changes):
    n = np.array([3, 2, 3, 3])
    arrays = {"N": n, "Z": np.where(np.arange(3) < n[:, None], Z, 0), "R": X, "E": E, "F": F, "D": F[:, 0]}
    np.savez(path, **{**arrays, "Q": np.array([0.0, -1.0, 0.0, 1.0]), **changes})
    return path


def test_physnet(tmp_path):
    store = open_dataset(physnet(tmp_path / "a.npz"), fidelity="mp2")
    assert store.labels == ["dipole_mp2", "energy_mp2", "forces_mp2"]
    np.testing.assert_array_equal(store.n_atoms, [3, 2, 3, 3])
    assert store[1].molecule == "HO-1"
    np.testing.assert_array_equal(store[1].labels["forces_mp2"], F[1, :2])
    assert store[3].structure.charge == 1
    assert store.energies("energy_mp2")[3] == -76.3


def test_physnet_padding(tmp_path):
    with pytest.raises(ValueError, match=r"`N` must not exceed the 3 columns of `Z`"):
        open_dataset(physnet(tmp_path / "a.npz", N=np.array([4, 3, 3, 3])))


def test_objects_are_never_unpickled(tmp_path):
    path = physnet(tmp_path / "a.npz", E=np.array([{"a": 1}] * 4, dtype=object))
    assert "energy_ref" not in open_dataset(path).labels
    with pytest.raises(ValueError, match=r"key `E` for `energy` matches nothing"):
        open_dataset(path, keys={"energy": "E"})


def spice(path, unit="hartree", smiles="[O:1]([H:2])[H:3]"):
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        group["atomic_numbers"] = Z
        group["smiles"] = [smiles.encode()]
        group["subset"] = [b"SPICE test"]
        for name, values, u in (
            ("conformations", X / BOHR, "bohr"),
            ("dft_total_energy", E, unit),
            ("dft_total_gradient", F, "hartree/bohr"),
            ("mbis_charges", F[:, :, :1], "elementary_charge"),
            ("scf_dipole", F[:, 0], "elementary_charge*bohr"),
            ("mayer_indices", F, ""),
        ):
            group[name] = values
            if u:
                group[name].attrs["units"] = u
    return path


def test_spice(tmp_path):
    store = open_dataset(spice(tmp_path / "a.hdf5"), fidelity="dft")
    record = store[1]
    np.testing.assert_allclose(record.structure.positions, X[1], rtol=1e-12)
    assert record.labels["energy_dft"] == pytest.approx(-76.1 * HARTREE)
    np.testing.assert_allclose(record.labels["forces_dft"], -F[1] * HARTREE / BOHR)
    np.testing.assert_allclose(record.labels["charges_dft"], F[1, :, 0])
    np.testing.assert_allclose(record.labels["dipole_dft"], F[1, 0] * BOHR)
    assert (record.molecule, record.origin) == ("[O:1]([H:2])[H:3]", "SPICE test")
    assert store.card.levels["dft"].label == "wB97M-D3(BJ)/def2-TZVPPD"
    gradient = open_dataset(tmp_path / "a.hdf5", keys={"forces": "dft_total_gradient"})
    np.testing.assert_allclose(gradient[1].labels["forces_ref"], record.labels["forces_dft"])


def test_spice_other_and_missing_units(tmp_path):
    kilo = open_dataset(spice(tmp_path / "a.hdf5", unit="kJ/mol"))
    assert kilo.energies("energy_ref")[0] == pytest.approx(-76.0 * 0.01036427, rel=1e-6)
    path = spice(tmp_path / "b.hdf5", unit="")
    with pytest.raises(ValueError, match=r"array `dft_total_energy` of `b.hdf5` must state its unit"):
        open_dataset(path)
    assert open_dataset(path, units={"energy": "hartree"}).energies("energy_ref")[0] == pytest.approx(-76 * HARTREE)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[H:2][O:1][H:3]", 0),
        ("[Na+:1].[Cl-:2]", 0),
        ("[Mg+2:1]", 2),
        ("[N+:1]C(=O)[O-:5].[S--]", -2),
        ("[C@@H](F)", 0),
    ],
)
def test_formal_charge(smiles, charge):
    assert formal_charge(smiles) == charge


def test_spice_ion(tmp_path):
    assert open_dataset(spice(tmp_path / "a.hdf5", smiles="[OH2+2]"))[0].structure.charge == 2


def off_centre_ion(path, charge=1, dipole=True):
    """Point charges, of one conformation, far from the origin of the coordinates."""
    charges, positions = np.array([-0.7, 0.9, charge - 0.2]), X[:1] + np.array([3.0, -2.0, 5.0])
    with h5py.File(path, "w") as file:
        group = file.create_group("ion")
        group["atomic_numbers"], group["smiles"] = Z, [f"[OH2+{charge}]".encode() if charge else b"O"]
        arrays = {
            "conformations": (positions / BOHR, "bohr"),
            "dft_total_energy": (E[:1], "hartree"),
            "scf_dipole": (np.einsum("a,nax->nx", charges, positions) / BOHR, "elementary_charge*bohr"),
            "scf_quadrupole": (
                np.einsum("a,nax,nay->nxy", charges, positions, positions) / BOHR**2,
                "elementary_charge*bohr^2",
            ),
        }
        for name, (values, unit) in arrays.items():
            if dipole or name != "scf_dipole":
                group[name] = values
                group[name].attrs["units"] = unit
    relative = positions[0] - positions[0].T @ Z / Z.sum()
    return charges @ relative, np.einsum("a,ax,ay->xy", charges, relative, relative)


@pytest.mark.parametrize("charge", [0, 1, 2])
def test_spice_moments_are_about_the_charge_centre(tmp_path, charge):
    """What the format has about the origin of the coordinates: of an ion even the dipole depends on it."""
    dipole, quadrupole = off_centre_ion(tmp_path / "a.hdf5", charge)
    labels = open_dataset(tmp_path / "a.hdf5")[0].labels
    np.testing.assert_allclose(labels["dipole_ref"], dipole, atol=1e-9)
    np.testing.assert_allclose(labels["quadrupole_ref"], quadrupole, atol=1e-9)
    # the quadrupole alone takes the dipole too, which is then no label
    alone = open_dataset(tmp_path / "a.hdf5", keys={"quadrupole": "scf_quadrupole"})[0].labels
    assert alone.keys() == {"quadrupole_ref"}
    np.testing.assert_allclose(alone["quadrupole_ref"], quadrupole, atol=1e-9)


def test_spice_quadrupole_without_a_dipole(tmp_path):
    off_centre_ion(tmp_path / "a.hdf5", dipole=False)
    with pytest.raises(ValueError, match=r"`scf_quadrupole` of `/ion` in `a.hdf5` must come with `scf_dipole`.*keys="):
        list(open_dataset(tmp_path / "a.hdf5"))
    assert open_dataset(tmp_path / "a.hdf5", keys={"energy": "dft_total_energy"})[0].labels.keys() == {"energy_ref"}


def ani(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("h2o").create_group("deep") if path.name == "deep.h5" else file.create_group("H2O")
        group["atomic_numbers"] = Z.astype(np.uint8)
        group["coordinates"] = X.astype(np.float32)
        group["wb97x_dz.energy"] = E
        group["wb97x_dz.forces"] = F
        group["wb97x_dz.hirshfeld_charges"] = np.array([np.zeros(3), [-0.6, 0.3, 0.3], np.full(3, np.nan), np.zeros(3)])
        group["ccsd(t)_cbs.energy"] = np.array([np.nan, -76.4, np.nan, -76.5])
        group["mp2_tz.corr_energy"] = np.array([-0.2, -0.2, -0.2, -0.2])
    return path


def test_ani(tmp_path):
    store = open_dataset(ani(tmp_path / "a.h5"))
    assert store.labels == ["charges_wb97x_dz", "energy_ccsdt", "energy_wb97x_dz", "forces_wb97x_dz"]
    np.testing.assert_array_equal(store.coverage("energy_ccsdt"), [False, True, False, True])
    np.testing.assert_array_equal(store.coverage("charges_wb97x_dz"), [False, True, False, False])
    np.testing.assert_allclose(store[1].labels["forces_wb97x_dz"], F[1] * HARTREE)
    assert store.energies("energy_ccsdt")[3] == pytest.approx(-76.5 * HARTREE)
    assert open_dataset(tmp_path / "a.h5", fidelity="ccsdt").labels == ["energy_ccsdt"]
    parts = open_dataset(tmp_path / "a.h5", keys={"energy_corr": "mp2_tz.corr_energy"})
    assert parts.energies("energy_corr")[0] == pytest.approx(-0.2 * HARTREE)
    assert len(open_dataset(ani(tmp_path / "deep.h5"))) == 4


def test_ani2x(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("003")
        group["species"] = np.tile(Z, (4, 1))
        group["coordinates"], group["energies"], group["forces"] = X, E, F
    assert open_dataset(tmp_path / "a.h5").energies("energy_wb97x_dz")[1] == pytest.approx(-76.1 * HARTREE)


def test_aimnet(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("003")
        group["numbers"], group["coord"] = np.tile(Z, (4, 1)), X
        group["energy"], group["forces"], group["dipole"] = E, F, F[:, 0]
        group["charges"] = np.where(np.arange(4)[:, None] == 2, np.nan, F[:, :, 0])
        group["charge"], group["mult"] = np.array([0, 1, -1, 0]), np.array([1, 2, 2, 3])
        group["quadrupole"] = np.zeros((4, 6))
    store = open_dataset(tmp_path / "a.h5", fidelity="dft")
    assert store.labels == ["charges_dft", "dipole_dft", "energy_dft", "forces_dft"]
    np.testing.assert_array_equal(store.coverage("charges_dft"), [True, True, False, True])
    assert [(r.structure.charge, r.structure.multiplicity) for r in store] == [(0, 1), (1, 2), (-1, 2), (0, 3)]


def test_truncated_hdf5(tmp_path):
    path = ani(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"cannot open `b.h5` as HDF5, it may be truncated"):
        open_dataset(truncated(tmp_path / "b.h5", path))


def deepmd(folder, pbc=True, **extra):
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    (folder / "type_map.raw").write_text("O H\n")
    arrays = {"coord": X.reshape(4, 9), "energy": E, "force": F.reshape(4, 9), **extra}
    if pbc:
        arrays["box"] = np.tile(np.diag([5.0, 5.0, 6.0]).ravel(), (4, 1))
    else:
        (folder / "nopbc").touch()
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values)
    return folder


def test_deepmd(tmp_path):
    virial = RNG.normal(size=(4, 3, 3))
    virial = virial + virial.transpose(0, 2, 1)
    deepmd(tmp_path / "a" / "wet", virial=virial.reshape(4, 9))
    deepmd(tmp_path / "a" / "dry", pbc=False)
    store = open_dataset(tmp_path / "a", fidelity="dft")
    assert len(store) == 8
    dry, wet = store[1], store[6]
    assert wet.structure.pbc.all()
    assert not dry.structure.pbc.any()
    np.testing.assert_array_equal(dry.structure.atomic_numbers, Z)
    np.testing.assert_allclose(wet.structure.positions, X[2])
    np.testing.assert_allclose(wet.labels["forces_dft"], F[2])
    np.testing.assert_allclose(wet.labels["stress_dft"], -virial[2] / 150.0)
    assert wet.labels["energy_dft"] == E[2]
    assert len(open_dataset(tmp_path / "a" / "dry")) == 4


def test_deepmd_mixed_types(tmp_path):
    folder = deepmd(tmp_path / "a", pbc=False, real_atom_types=np.array([[0, 1, 1]] * 3 + [[0, 1, -1]]))
    store = open_dataset(folder)
    np.testing.assert_array_equal(store.n_atoms, [3, 3, 3, 2])
    np.testing.assert_allclose(store[3].labels["forces_ref"], F[3, :2])


def test_deepmd_mistakes(tmp_path):
    folder = deepmd(tmp_path / "a", energy=E[:3])
    with pytest.raises(ValueError, match=r"must have 4 frames like `coord.npy`, got 3"):
        open_dataset(folder)
    (folder / "set.000" / "box.npy").unlink()
    with pytest.raises(ValueError, match=r"or its system a file `nopbc`: periodic without a cell"):
        open_dataset(folder)
    (folder / "type_map.raw").write_text("O Xx9")
    with pytest.raises(ValueError, match=r"must hold chemical symbols, got Xx9"):
        open_dataset(folder)
    (folder / "type_map.raw").unlink()
    with pytest.raises(ValueError, match=r"must have a `type_map.raw` that names its elements"):
        open_dataset(folder)


RUNNER = """begin
comment water
lattice 10 0 0
lattice 0 10 0
lattice 0 0 10
atom 0 0 0 O -0.8 0 0.1 0 0
atom 1.8 0 0 H 0.4 0 -0.1 0 0
atom -0.5 1.7 0 H 0.4 0 0 0 0
energy -17.2
charge 0
end
"""


def test_runner(tmp_path):
    (tmp_path / "input.data").write_text(RUNNER + RUNNER.replace("lattice", "comment").replace("-17.2", "-17.3"))
    store = open_dataset(tmp_path / "input.data", fidelity="mp2")
    first, second = store
    assert first.structure.pbc.all()
    assert not second.structure.pbc.any()
    assert first.structure.cell[2, 2] == pytest.approx(10 * BOHR)
    assert first.structure.positions[1, 0] == pytest.approx(1.8 * BOHR)
    assert second.labels["energy_mp2"] == pytest.approx(-17.3 * HARTREE)
    assert first.labels["forces_mp2"][0, 0] == pytest.approx(0.1 * HARTREE / BOHR)
    charged = open_dataset(tmp_path / "input.data", keys={"charges": "atom_charge"})
    np.testing.assert_allclose(charged[0].labels["charges_ref"], [-0.8, 0.4, 0.4])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("end\n", "", "frame 0 of `input.data` must end with `end`; the file is truncated"),
        ("O -0.8 0", "O -0.8", "every `atom` line must have 9 words after it, got 8 words"),
        (" O ", " Oo ", "elements must be chemical symbols, got `Oo`"),
    ],
)
def test_runner_mistakes(tmp_path, old, new, message):
    (tmp_path / "input.data").write_text(RUNNER.replace(old, new))
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path / "input.data")


def database(path, metadata=None, data=True):
    with ase.db.connect(path, type="db") as db:
        if metadata is not None:
            db.metadata = metadata
        for i in range(4):
            atoms = ase.Atoms(Z, X[i])
            if data:
                db.write(atoms, data={"energy": E[i : i + 1], "forces": F[i]}, smiles="O", charge=0)
            else:
                atoms.calc = SinglePointCalculator(atoms, energy=E[i], forces=F[i])
                db.write(atoms)
    return path


def test_ase_database_columns(tmp_path):
    store = open_dataset(database(tmp_path / "a.db", data=False), fidelity="dft")
    assert store.labels == ["energy_dft", "forces_dft"]
    assert store.card.units_stated
    np.testing.assert_allclose(store[3].labels["forces_dft"], F[3])


def test_a_label_that_the_first_row_of_a_database_lacks(tmp_path):
    with ase.db.connect(tmp_path / "a.db", type="db") as db:
        db.write(ase.Atoms(Z, X[0]), data={"forces": F[0]})
    store = open_dataset(database(tmp_path / "a.db"), fidelity="dft")
    np.testing.assert_array_equal(store.coverage("energy_dft"), [False, True, True, True, True])
    assert store.coverage("forces_dft").all()


def test_schnetpack_layout(tmp_path):
    metadata = {
        "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"},
        "_distance_unit": "Ang",
        "atomrefs": {"energy": [0.0, -0.5] + [0.0] * 6 + [-75.0]},
    }
    store = open_dataset(database(tmp_path / "a.db", metadata), fidelity="dft")
    assert store.card.units_stated
    assert store.energies("energy_dft")[1] == pytest.approx(-76.1 * HARTREE)
    np.testing.assert_allclose(store[2].labels["forces_dft"], F[2] * HARTREE)
    np.testing.assert_allclose(store[2].structure.positions, X[2])
    assert store.card.references["dft"]["O"] == pytest.approx(-75 * HARTREE)
    assert set(store.molecules) == {"O"}


def test_schnetpack_without_metadata(tmp_path, caplog):
    store = open_dataset(database(tmp_path / "a.db"))
    assert "assumed energy in eV, forces in eV/Å" in caplog.text
    assert not store.card.units_stated
    assert store.energies("energy_ref")[0] == -76.0
    scaled = open_dataset(tmp_path / "a.db", units={"energy": "hartree", "forces": "hartree/Å"})
    assert scaled.energies("energy_ref")[0] == pytest.approx(-76 * HARTREE)


def test_ase_database_mistakes(tmp_path):
    path = database(tmp_path / "a.db")
    with pytest.raises(ValueError, match=r"`data.energi` for `energy` matches nothing .*did you mean `data.energy`"):
        open_dataset(path, keys={"energy": "data.energi"})
    with pytest.raises(ValueError, match=r"`b.db` as an ASE database, it may be truncated|must hold at least one row"):
        open_dataset(truncated(tmp_path / "b.db", path))
    ase.db.connect(tmp_path / "c.db", type="db").metadata = {}
    with pytest.raises(ValueError, match=r"`c.db` must hold at least one row, got an empty database"):
        open_dataset(tmp_path / "c.db")
