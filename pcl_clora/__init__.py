"""Point cloud analysis with frozen transformers and collaborative low-rank adaptation (CLoRA)."""

__version__ = "0.1.0"
