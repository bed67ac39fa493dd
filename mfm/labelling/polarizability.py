"""Static dipole polarizability by coupled-perturbed Kohn-Sham equations, restricted and unrestricted.

α_xy = −2 Σ_σ Σ_ai h^x_ai U^y_ai per doubly counted spin, with U the first-order response of the occupied orbitals to
a field (Pople et al., Int. J. Quantum Chem. Symp. 13, 225 (1979)). Atomic units.
"""

from typing import Any

import numpy as np
from pyscf.scf import cphf, ucphf

__all__ = ["polarizability"]

_CYCLES, _TOLERANCE = 50, 1e-8


def polarizability(solver: Any) -> np.ndarray:
    """Polarizability of a converged SCF, (3, 3), bohr³ (e² bohr² / hartree).

    Parameters
    ----------
    solver : pyscf.dft.rks.RKS or pyscf.dft.uks.UKS
        Converged, with integer occupations.
    """
    field = solver.mol.intor_symmetric("int1e_r", comp=3)
    # one channel per spin; a restricted solver has one that counts twice
    is_restricted = np.ndim(solver.mo_coeff) == 2
    orbitals = [solver.mo_coeff] if is_restricted else list(solver.mo_coeff)
    occupied = [c[:, n > 0] for c, n in zip(orbitals, np.atleast_2d(solver.mo_occ), strict=True)]
    weight = 2.0 if is_restricted else 1.0
    perturbation = [np.einsum("xpq,pi,qj->xij", field, c, o) for c, o in zip(orbitals, occupied, strict=True)]
    respond = solver.gen_response(hermi=1)

    def potential(flat: np.ndarray) -> np.ndarray:
        """Change of the potential, in molecular orbitals, that first-order orbitals cause."""
        sizes = [h[0].size for h in perturbation]
        # the solver drops directions that have converged: fewer than three may come
        vectors = np.asarray(flat).reshape(-1, sum(sizes))
        parts = np.split(vectors, np.cumsum(sizes)[:-1], axis=1)
        matrices = []
        for part, h, c, o in zip(parts, perturbation, orbitals, occupied, strict=True):
            matrix = weight * np.einsum("xai,pa,qi->xpq", part.reshape(-1, *h.shape[1:]), c, o)
            matrices.append(matrix + matrix.transpose(0, 2, 1))
        response = respond(matrices[0])[None] if is_restricted else respond(np.array(matrices))
        projected = [
            np.einsum("xpq,pi,qj->xij", v, c, o).reshape(len(vectors), -1)
            for v, c, o in zip(response, orbitals, occupied, strict=True)
        ]
        return np.hstack(projected).ravel()

    zeros = [np.zeros_like(h) for h in perturbation]
    settings = {"max_cycle": _CYCLES, "tol": _TOLERANCE, "verbose": 0}
    if is_restricted:
        orders = [cphf.solve(potential, solver.mo_energy, solver.mo_occ, perturbation[0], zeros[0], **settings)[0]]
    else:
        orders = ucphf.solve(potential, solver.mo_energy, solver.mo_occ, perturbation, zeros, **settings)[0]
    tensor = sum(np.einsum("xai,yai->xy", h, u) for h, u in zip(perturbation, orders, strict=True))
    return -weight * (tensor + tensor.T)
