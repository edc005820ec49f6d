"""The backbones, a folder a family."""
