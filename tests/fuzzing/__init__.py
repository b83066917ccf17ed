"""Random calls of the losses, and the float64 equations that their results are held against (tests/fuzz.py)."""
