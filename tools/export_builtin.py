"""Make the weights that ship with the package from a finished pre-training, with their model card.

Example: python tools/export_builtin.py runs/pretrain_tiny
"""

import argparse

from pcl_clora.engine.pretraining_export import export_builtin

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--out", default=None, help="folder to write to; by default that of the package")
    given = parser.parse_args()
    card = export_builtin(given.run, given.out)
    print(f"{card['model']}: {card['bytes']:,} bytes, SHA-256 {card['sha256']}")
