"""Does a run fit? Parameter counts and bytes per rank, computed from config.json and the arguments alone."""

from megatron_trainjob.memory.estimate import MemoryEstimate, RankMemory, estimate
from megatron_trainjob.memory.shape import LayerParameters, ModelShape

__all__ = ["LayerParameters", "MemoryEstimate", "ModelShape", "RankMemory", "estimate"]
