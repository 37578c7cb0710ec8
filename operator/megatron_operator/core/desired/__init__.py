"""Job and attempt -> the Kubernetes objects that should exist, as plain dicts. Pure and deterministic."""
