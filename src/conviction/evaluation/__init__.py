"""Data sets, grading, and runs over many questions."""
