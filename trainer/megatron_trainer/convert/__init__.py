"""Weights between Hugging Face checkpoints and megatron-core's shards, both ways, one tensor at a time.

rules.py is pure tensor maths; table.py says which rule holds for which parameter; load.py and save.py do the I/O.
"""
