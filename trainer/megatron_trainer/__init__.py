"""The trainer: data, models, conversion, losses, loop, checkpoints and reports on top of Megatron-Core."""
