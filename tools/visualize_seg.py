"""Show what a part segmentation run does: the same as `pcl-clora view`.

Without files it shows the run's test set, worst clouds first.

Example: python tools/visualize_seg.py --run runs/partseg_coseg_tiny_clora --out gallery.html
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["view", *sys.argv[1:]], prog_name="tools/visualize_seg.py")
