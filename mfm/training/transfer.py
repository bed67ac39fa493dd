"""Starting from the weights of another model."""

import dataclasses
import logging

import torch

from mfm.fidelity import merge_levels
from mfm.model import Domain, MFMModel, ModelConfig, build_model

__all__ = ["merge_domains", "start_from"]

logger = logging.getLogger(__name__)


def merge_domains(parent: Domain, new: Domain) -> Domain:
    """Domain of a model that goes on from a parent with new data.

    What the parent's weights were trained with stays: references of its fidelities, scale, neighbours. New fidelities
    and elements come from the new data.

    Raises
    ------
    ValueError
        If a fidelity of both stands for different levels of theory.
    """
    references = {
        fidelity: {**energies, **parent.references.get(fidelity, {})} for fidelity, energies in new.references.items()
    }
    levels = merge_levels(parent.levels, new.levels, "the training data")
    return dataclasses.replace(
        parent,
        references=references,
        levels={fidelity: levels[fidelity] for fidelity in references},
        charges=tuple(sorted({*parent.charges, *new.charges})),
        multiplicities=tuple(sorted({*parent.multiplicities, *new.multiplicities})),
    )


def start_from(parent: MFMModel, config: ModelConfig, domain: Domain, seed: int, dtype: torch.dtype) -> MFMModel:
    """Fresh model with every weight of the parent that it has a place for; heads of shared tasks are kept.

    Parameters
    ----------
    domain : Domain
        Of the new training data.
    seed : int
        Of the weights that the parent does not have.

    Raises
    ------
    ValueError
        If the representation of the two differs.
    """
    model = build_model(config, merge_domains(parent.domain, domain), seed, dtype)
    mine, theirs = model.state_dict(), parent.state_dict()
    usable = {name: value for name, value in theirs.items() if name in mine and mine[name].shape == value.shape}
    absent = [name for name in mine if name.startswith("backbone.") and name not in usable]
    if absent:
        raise ValueError(f"the parent's backbone must fit, but `{absent[0]}` has another shape or is not there")
    fresh = sorted({".".join(name.split(".")[:2]) for name in mine if name not in usable})
    logger.info("weights taken from the parent; fresh: %s", ", ".join(fresh) or "none")
    model.load_state_dict(usable, strict=False)
    return model
