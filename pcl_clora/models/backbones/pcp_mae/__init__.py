"""PCP-MAE."""
