"""Whether a run fits: parameter counts and bytes per rank, computed from config.json and the arguments alone."""

from megatron_trainjob.families.model import LayerParameters, Model
from megatron_trainjob.memory.estimate import MemoryEstimate, RankMemory, estimate

__all__ = ["LayerParameters", "MemoryEstimate", "Model", "RankMemory", "estimate"]
