"""Tables and figures of the paper from records of runs."""
