"""The world model: networks, categorical scalars, the squashed-Gaussian policy, the normaliser."""

from ezm_pl.world_model.inference import InferenceModel, part_size
from ezm_pl.world_model.model import WorldModel
from ezm_pl.world_model.policy import MAX_ACTION, PolicyBounds, SquashedGaussian
from ezm_pl.world_model.scalars import CategoricalScalar

__all__ = [
    "MAX_ACTION",
    "CategoricalScalar",
    "InferenceModel",
    "PolicyBounds",
    "SquashedGaussian",
    "WorldModel",
    "part_size",
]
