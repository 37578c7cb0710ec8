"""Training: the parts of a run, the loop, one step, the optimizer and its schedule, and the outputs."""
