"""Write a weights file under official, hub or native names, as .pth or .safetensors.

The same as `pcl-clora weights convert`.

Example: python tools/convert_checkpoint.py pretrain.pth pretrain.safetensors --to native
"""

import sys

from pcl_clora.cli import main

if __name__ == "__main__":
    main(["weights", "convert", *sys.argv[1:]], prog_name="tools/convert_checkpoint.py")
