"""Which sample comes when: mixing data sets, passes, packing."""
