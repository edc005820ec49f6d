"""Reading, translating and writing weights."""
