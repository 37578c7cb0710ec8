"""Training: what a run is built of, the loop, one step, the optimizer and its schedule, and what is written."""
