"""Replacements of single symbols of megatron-core, one subject a file; each is listed in register.py."""
