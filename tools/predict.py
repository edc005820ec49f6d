"""Classify or segment point files with a finished run: the same as `pcl-clora predict`.

Example: python tools/predict.py runs/partseg_coseg_tiny_clora chair.ply --category CosegChair
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]], prog_name="tools/predict.py")
