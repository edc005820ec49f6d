"""The data sets that come with the package; importing this makes them known by name."""

from __future__ import annotations

from pcl_clora.data.arrays import ArraysConfig, make_arrays
from pcl_clora.data.folds import FewshotConfig, FewshotFold
from pcl_clora.data.generated.procedural import ProceduralConfig, ProceduralShapes
from pcl_clora.data.generated.procedural_corpus import ProceduralCorpus, ProceduralCorpusConfig
from pcl_clora.data.packed.read import PackedConfig, PackedDataset
from pcl_clora.data.readers.digits import Digits, DigitsConfig
from pcl_clora.data.readers.file_list import FileListConfig
from pcl_clora.data.readers.folder import FolderConfig, PointFolder
from pcl_clora.data.readers.labelled_folder import LabelledFolder, LabelledFolderConfig
from pcl_clora.data.readers.modelnet_fewshot import ModelNetFewshot, ModelNetFewshotConfig
from pcl_clora.data.readers.modelnet_hdf5 import ModelNet40Hdf5, ModelNet40Hdf5Config
from pcl_clora.data.readers.modelnet_txt import ModelNet40Txt, ModelNet40TxtConfig
from pcl_clora.data.readers.scanobjectnn import ScanObjectNN, ScanObjectNNConfig
from pcl_clora.data.readers.scanobjectnn_raw import ScanObjectNNRaw, ScanObjectNNRawConfig
from pcl_clora.data.readers.shapenetpart_hdf5 import ShapeNetPartHdf5, ShapeNetPartHdf5Config
from pcl_clora.data.readers.shapenetpart_txt import ShapeNetPartTxt, ShapeNetPartTxtConfig
from pcl_clora.data.registry import register_dataset

register_dataset("modelnet40_hdf5", ModelNet40Hdf5Config, ModelNet40Hdf5)
register_dataset("modelnet40_txt", ModelNet40TxtConfig, ModelNet40Txt)
register_dataset("scanobjectnn", ScanObjectNNConfig, ScanObjectNN)
register_dataset("scanobjectnn_raw", ScanObjectNNRawConfig, ScanObjectNNRaw)
register_dataset("shapenetpart_txt", ShapeNetPartTxtConfig, ShapeNetPartTxt)
register_dataset("shapenetpart_hdf5", ShapeNetPartHdf5Config, ShapeNetPartHdf5)
register_dataset("modelnet_fewshot", ModelNetFewshotConfig, ModelNetFewshot)
register_dataset("fewshot", FewshotConfig, FewshotFold)
register_dataset("folder", FolderConfig, PointFolder)
register_dataset("file_list", FileListConfig, PointFolder)
register_dataset("labelled_folder", LabelledFolderConfig, LabelledFolder)
register_dataset("packed", PackedConfig, PackedDataset)
register_dataset("procedural", ProceduralConfig, ProceduralShapes)
register_dataset("procedural_corpus", ProceduralCorpusConfig, ProceduralCorpus)
register_dataset("digits", DigitsConfig, Digits)
register_dataset("arrays", ArraysConfig, make_arrays)
