"""Photographs in one folder, named after their class: `red_fox_017.jpg` is a `red fox`."""

from fedvlm.data.build import build_source
from fedvlm.data.files import FileImage, existing_folder
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData


class Prefixes(FileData):
    """`path` holds the photographs."""

    ending: str = ".jpg"
    """Of the files that are read."""

    def load(self, seed, decode_cache):
        """One row per file; `build_source` checks every image and numbers the classes."""
        root = existing_folder(self.path)
        rows = [
            ImageRow(FileImage(root, file.name, self.max_megapixels), file.stem.rpartition("_")[0].replace("_", " "))
            for file in sorted(root.glob(f"*{self.ending}"))
        ]
        return build_source(root.name, rows, self, decode_cache)
