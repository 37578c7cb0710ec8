"""Models: how a family's record and a config.json become a megatron-core model."""
