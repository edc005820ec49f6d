"""Draw the first clouds of the procedural corpus into a picture, for docs/pretraining.md.

Example: python tools/draw_corpus.py docs/images/procedural_corpus.png
"""

import sys

from PIL import Image

from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.engine.run_pictures import draw_page

NUM_CLOUDS, COLUMNS = 64, 8

if __name__ == "__main__":
    corpus = build_dataset(parse_data_config({"name": "procedural_corpus", "num_points": 2048}), "train")
    page = draw_page(corpus.read_batch(range(NUM_CLOUDS)).points, COLUMNS)
    Image.fromarray(page).quantize(32).save(sys.argv[1], optimize=True)
