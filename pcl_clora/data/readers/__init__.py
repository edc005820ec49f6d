"""Readers of the official layouts and of a folder of files."""
