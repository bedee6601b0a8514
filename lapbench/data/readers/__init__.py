"""The data readers: importing this package registers them."""

from lapbench.data.digits import read_digits
from lapbench.data.faces import read_faces
from lapbench.data.readers.celeba import read_celeba, read_celeba_landmarks
from lapbench.data.readers.coco import read_coco
from lapbench.data.readers.csv_boxes import read_csv_boxes
from lapbench.data.readers.cub import read_cub
from lapbench.data.readers.deeppcb import read_deeppcb
from lapbench.data.readers.folders import read_class_folders, read_mask_folders
from lapbench.data.readers.imagenet import read_imagenet
from lapbench.data.readers.rsna import read_rsna
from lapbench.data.readers.tiny_imagenet import read_tiny_imagenet
from lapbench.data.readers.voc import read_voc
from lapbench.data.scenes import read_scenes

__all__ = [
    "read_celeba",
    "read_celeba_landmarks",
    "read_class_folders",
    "read_coco",
    "read_csv_boxes",
    "read_cub",
    "read_deeppcb",
    "read_digits",
    "read_faces",
    "read_imagenet",
    "read_mask_folders",
    "read_rsna",
    "read_scenes",
    "read_tiny_imagenet",
    "read_voc",
]
