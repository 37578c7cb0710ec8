"""Training data: from files to micro-batches. Rows are read, recognised, rendered, tokenised, cached, packed, dealt."""
