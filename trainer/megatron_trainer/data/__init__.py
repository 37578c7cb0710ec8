"""Training data: from files to micro-batches. Reads, recognizes, renders, tokenizes, caches and packs rows."""
