"""Samples that are read while training: items, rows, packing, and the journal that resumes them."""
