"""Measure how fast the point operators are: the same as `pcl-clora bench ops`.

Example: python tools/benchmark.py --out results/bench/ops.json
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["bench", "ops", *sys.argv[1:]], prog_name="tools/benchmark.py")
