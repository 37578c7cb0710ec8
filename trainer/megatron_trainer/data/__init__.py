"""Training data: from files to micro-batches. Rows are read, recognized, rendered, tokenized, cached, packed, dealt."""
