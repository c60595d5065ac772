"""Photographs in one folder, named after their class: `red_fox_017.jpg` is a `red fox`."""

from fedvlm.data.files import FileImage, folder
from fedvlm.data.gather import gather
from fedvlm.data.rows import Row
from fedvlm.data.settings import FileData


class Prefixes(FileData):
    """`path` holds the photographs."""

    ending: str = ".jpg"
    """Of the files that are read."""

    def load(self, seed, remembered):
        """One row per file; `gather` checks every image and numbers the classes."""
        root = folder(self.path)
        rows = [
            Row(FileImage(root, file.name, self.max_megapixels), name=file.stem.rpartition("_")[0].replace("_", " "))
            for file in sorted(root.glob(f"*{self.ending}"))
        ]
        return gather(root.name, rows, self, remembered)
