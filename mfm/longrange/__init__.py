"""Energy beyond the cutoff: conserved charges and sums that are right for molecules, slabs and crystals."""

from mfm.longrange.latent import LatentEwald, LatentEwaldConfig, LongRange, LongRangeOfTasks

__all__ = ["LatentEwald", "LatentEwaldConfig", "LongRange", "LongRangeOfTasks"]
