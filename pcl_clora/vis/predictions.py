"""Pages of what was predicted for files: a picture of each, the least sure first, a click opens the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pcl_clora.predict import Prediction, Predictor
from pcl_clora.vis.html import QUANTISE_ABOVE, Item, render_gallery
from pcl_clora.vis.segmentation import Answer, part_legend

ON_A_PAGE = 200  # clouds; a page of more is slow to open


def prediction_item(predictor: Predictor, file: str, said: Prediction) -> Item:
    """Make the entry of a gallery from a prediction, in the frame of the model.

    A segmented cloud of more than 200,000 points is shown by the points that the model saw.
    """
    name, confidence = Path(file).name, float(said.confidence.mean())
    novel = ", not like the training data" if said.is_novel else ""
    text = f"{said.name}, {100 * confidence:.1f} %{novel}"
    answer = Answer(name, said.seen.numpy(), said=text)
    if said.is_segmentation:
        few = len(said.cloud) > QUANTISE_ABOVE
        answer = replace(
            answer,
            points=answer.points if few else said.cloud.numpy(),
            prediction=said.seen_probability.argmax(-1) if few else said.label,
            confidence=said.seen_probability.max(-1) if few else said.confidence,
            legend=part_legend(predictor.taxonomy, predictor.category(said.category)),
        )
    return replace(answer.item(), title=f"{name}: {text}", score=confidence, group=said.name)


class PredictionPages:
    """Writes galleries into a folder, 200 clouds each: index.html, index_2.html, ...

    Args:
        folder: made if it is missing.
        title: of the pages.
    """

    def __init__(self, folder: str | Path, title: str) -> None:
        self.folder, self.title = Path(folder), title
        self.pages: list[Path] = []
        self._items: list[Item] = []

    def add(self, items: Sequence[Item]) -> None:
        """Add clouds; a page is written when it is full."""
        for item in items:
            self._items.append(item)
            if len(self._items) == ON_A_PAGE:
                self.finish()

    def finish(self) -> list[Path]:
        """Write what is left, and return all pages."""
        if self._items:
            number = len(self.pages) + 1
            path = self.folder / ("index.html" if number == 1 else f"index_{number}.html")
            title = self.title if number == 1 else f"{self.title}, page {number}"
            render_gallery(path, self._items, title=title, score_name="confidence")
            self.pages.append(path)
            self._items = []
        return self.pages
