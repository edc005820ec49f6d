"""Point-MAE."""
