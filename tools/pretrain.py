"""Pre-train a backbone without labels: the same as `pcl-clora pretrain`.

Example: python tools/pretrain.py --config cfgs/pretrain/tiny.yaml optim.epochs=2
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]], prog_name="tools/pretrain.py")
