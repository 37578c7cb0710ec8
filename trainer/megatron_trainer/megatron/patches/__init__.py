"""Replacements of single symbols of megatron-core, one subject per file; each is listed in register.py."""
