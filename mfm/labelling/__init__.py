"""Labels from quantum chemistry: geometries, levels of theory, a resumable store and a local supervisor.

The only part of mfm that imports PySCF, RDKit's conformers and tblite; install it with ``pip install mfm[labels]``.
"""
