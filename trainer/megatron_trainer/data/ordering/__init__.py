"""The order of samples: mixing datasets, epochs, packing."""
