"""Clouds packed into shards."""
