"""The manifest's shape as structural OpenAPI schemas: one source for the CRD, validation, defaults and explain."""
