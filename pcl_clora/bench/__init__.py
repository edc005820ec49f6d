"""Measurements of speed; those of other libraries, in `peers`, stay out of the wheel."""
