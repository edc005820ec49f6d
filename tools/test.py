"""Evaluate a finished run: the same as `pcl-clora eval`.

Example: python tools/test.py --run runs/modelnet40_tiny_full --json
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]], prog_name="tools/test.py")
