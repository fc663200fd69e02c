"""Model files: a catalogue of known ones, and a cache that fetches and verifies them.

resolve("qwen-0.5b")                      a model by name, fetched if it is not there yet
resolve("path/to/model.gguf")             a file that is there already
resolve("hf:owner/repository/file.gguf")  a file from the hub
"""

from conviction.models.cache import Limits, Notice, Progress
from conviction.models.catalogue import Catalogue, CatalogueModel, catalogue
from conviction.models.store import ModelFile, ModelStore, cache_folder, mirrors_setting, resolve

__all__ = [
    "Catalogue",
    "CatalogueModel",
    "Limits",
    "ModelFile",
    "ModelStore",
    "Notice",
    "Progress",
    "cache_folder",
    "catalogue",
    "mirrors_setting",
    "resolve",
]
