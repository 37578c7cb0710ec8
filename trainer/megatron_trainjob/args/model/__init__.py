"""A model under the arguments: config.json with the arguments applied, and why it cannot be trained."""
