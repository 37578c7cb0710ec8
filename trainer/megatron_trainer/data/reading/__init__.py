"""From a dataset argument to rows: which files, which split, which columns, within bounds of memory."""
