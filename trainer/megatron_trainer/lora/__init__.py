"""Which parameters train: low-rank adapters beside frozen weights, or a part of the weights in full training."""
