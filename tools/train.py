"""Train a model: the same as `pcl-clora train`.

Example: python tools/train.py --config cfgs/modelnet40/tiny_full.yaml
    data.root=/data/modelnet40_ply_hdf5_2048
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="tools/train.py")
