"""PointGPT S, B and L."""
