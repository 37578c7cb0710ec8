"""A plan becomes objects on a Kubernetes API server; what is there is read through informers and caches."""
