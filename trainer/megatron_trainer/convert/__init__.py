"""Weights between Hugging Face checkpoints and megatron-core's shards, both ways, one tensor at a time.

rules.py is pure tensor math; table.py maps each parameter to its rule; load.py and save.py do the I/O.
"""
