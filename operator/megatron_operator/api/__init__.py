"""What users see of the API: names, the CRD with its schemas, and the admission policy."""
