"""Writing a trained model for other programs: `pcl-clora export`."""

from pcl_clora.export.write import Exported, export_model

__all__ = ["Exported", "export_model"]
