"""The public API: names, the CRD with its schemas, and the admission policy."""
