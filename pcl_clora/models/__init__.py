"""Backbones, heads and their weights."""
