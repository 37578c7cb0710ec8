"""One file a lineage of model families; models/__init__.py lists them."""
