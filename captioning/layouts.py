"""How publishers arrange their caption data sets in a folder; a further one is a further `Layout`.

Images named in captions need not be there: what belongs together is found out by
:mod:`captioning.dataset`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from captioning.caption_files import (
    Captions,
    Quirks,
    SplitFile,
    read_caption_csv,
    read_caption_lines,
    read_flickr8k_splits,
    read_results_csv,
    read_token_file,
)
from captioning.caption_json import read_coco, read_karpathy


class Content(NamedTuple):
    """What caption files hold: captions, and splits where the same files give them."""

    captions: Captions
    splits: dict[str, SplitFile]
    split_origin: str


@dataclass(frozen=True)
class Layout:
    """How one publisher arranges a data set.

    Attributes:
        name: what it is called in summaries.
        contents: what a folder of this layout holds, for messages.
        image_folders: where the images may be, the first that exists counts; "" is the folder.
        caption_files: where the captions may be.
        read: the reader of those caption files that exist; most read the first alone.
        image_parts: the subfolders of the image folder with the images, those that exist; an
            image folder without any of them is none.
        by_file_name: captions name an image by its file name, in whatever subfolder it lies.
        karpathy: the name of Karpathy's file of splits for this data set.
    """

    name: str
    contents: str
    image_folders: tuple[str, ...]
    caption_files: tuple[str, ...]
    read: Callable[[list[Path], Quirks], Content]
    image_parts: tuple[str, ...] = ("",)
    by_file_name: bool = False
    karpathy: str = ""

    def find(self, folder: Path) -> "Found | None":
        """Where its pieces lie in `folder`; None if it does not have this layout."""
        captions = [path for name in self.caption_files if (path := folder / name).is_file()]
        if not captions:
            return None
        for image_folder in (folder / name for name in self.image_folders):
            parts = [part for part in self.image_parts if (image_folder / part).is_dir()]
            if parts:
                return Found(self, folder, image_folder, parts, captions)
        return None


@dataclass(frozen=True)
class Found:
    """A data set on the disk.

    Attributes:
        layout: how it is arranged.
        folder: the folder that was given.
        image_folder: what the names of images start from.
        image_parts: its subfolders that hold the images; "" for itself.
        caption_files: those that are there, the one that counts first.
    """

    layout: Layout
    folder: Path
    image_folder: Path
    image_parts: list[str]
    caption_files: list[Path]

    @property
    def own_files(self) -> set[str]:
        """Names of files that are the data set's, wherever they lie."""
        return {path.name for path in self.caption_files} | {self.layout.karpathy}

    def read(self, quirks: Quirks) -> Content:
        """Read the captions, and the splits that are theirs: in files of their own, or inside."""
        content = self.layout.read(self.caption_files, quirks)
        folders = [self.caption_files[0].parent, self.folder]
        if files := read_flickr8k_splits(folders, quirks):
            return content._replace(splits=files, split_origin="official split files")
        beside = [path for folder in folders if (path := folder / self.layout.karpathy).is_file()]
        if beside:
            own = Quirks()  # its captions are the same again, and so is what is odd about them
            splits = read_karpathy(beside[0], own)[1]
            quirks.add_problems(own)
            return content._replace(splits=splits, split_origin=_karpathy_origin(beside[0]))
        return content


def _lines(reader: Callable[[Path, Quirks], Captions]) -> Callable[[list[Path], Quirks], Content]:
    """A reader of one file that holds captions alone."""
    return lambda paths, quirks: Content(reader(paths[0], quirks), {}, "")


def _karpathy(paths: list[Path], quirks: Quirks) -> Content:
    return Content(*read_karpathy(paths[0], quirks), _karpathy_origin(paths[0]))


def _karpathy_origin(path: Path) -> str:
    return f"Karpathy's splits, {path.name}"


def _coco(paths: list[Path], quirks: Quirks) -> Content:
    """COCO's own captions and splits; the captions of its test images were never published."""
    captions: Captions = {}
    splits = {}
    for path in paths:
        read = read_coco(path, quirks)
        split = "train" if "_train" in path.name else "dev"
        splits[split] = SplitFile(path, list(read))
        for name, texts in read.items():
            captions.setdefault(name, []).extend(texts)
    given = ", ".join(f"{file.path.name} is {split}" for split, file in splits.items())
    return Content(captions, splits, f"COCO's own: {given}")


# Some tools unpack an archive into a folder named after it: the innermost folder counts.
_OFFICIAL_IMAGE_FOLDERS = (
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset/Flickr8k_Dataset",
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)
_KAGGLE_PARENTS = (
    "Flickr_Data/Flickr_Data/",
    "flickr_data/Flickr_Data/",
    "Flickr_Data/",
    "flickr_data/",
    "",
)
_FLICKR30K_PARENTS = ("", "flickr30k_images/", "flickr30k_images/flickr30k_images/", "flickr30k/")
_FLICKR30K_IMAGE_FOLDERS = (
    "flickr30k_images/flickr30k_images",
    "flickr30k-images/flickr30k-images",
    "flickr30k_images",
    "flickr30k-images",
)
_PLAIN_IMAGE_FOLDERS = ("images", "Images", "")
_COCO_YEARS = ("2014", "2017")
_FLICKR8K_FILE = "dataset_flickr8k.json"
_FLICKR30K_FILE = "dataset_flickr30k.json"
_COCO_FILE = "dataset_coco.json"


def _coco_parts(*years: str) -> tuple[str, ...]:
    return tuple(f"{split}{year}" for year in years for split in ("train", "val"))


LAYOUTS = (
    Layout(
        name="official",
        contents="Flicker8k_Dataset/ and Flickr8k_text/Flickr8k.token.txt",
        image_folders=_OFFICIAL_IMAGE_FOLDERS,
        caption_files=(
            "Flickr8k_text/Flickr8k_text/Flickr8k.token.txt",
            "Flickr8k_text/Flickr8k.token.txt",
            "Flickr8k.token.txt",
        ),
        read=_lines(read_token_file),
        karpathy=_FLICKR8K_FILE,
    ),
    Layout(
        name="kaggle-nested",
        contents="Flickr_Data/Images/ and Flickr_Data/Flickr_TextData/Flickr8k.token.txt",
        image_folders=tuple(f"{parent}Images" for parent in _KAGGLE_PARENTS),
        caption_files=tuple(
            f"{parent}Flickr_TextData/Flickr8k.token.txt" for parent in _KAGGLE_PARENTS
        ),
        read=_lines(read_token_file),
        karpathy=_FLICKR8K_FILE,
    ),
    Layout(
        name="kaggle-csv",
        contents="Images/ and captions.txt",
        image_folders=("Images",),
        caption_files=("captions.txt",),
        read=_lines(read_caption_csv),
        karpathy=_FLICKR8K_FILE,
    ),
    Layout(
        name="flickr30k",
        contents="flickr30k_images/ and results_20130124.token",
        image_folders=_FLICKR30K_IMAGE_FOLDERS,
        caption_files=tuple(f"{parent}results_20130124.token" for parent in _FLICKR30K_PARENTS),
        read=_lines(read_token_file),
        karpathy=_FLICKR30K_FILE,
    ),
    Layout(
        name="flickr30k-csv",
        contents="flickr30k_images/ and results.csv",
        image_folders=_FLICKR30K_IMAGE_FOLDERS,
        caption_files=tuple(f"{parent}results.csv" for parent in _FLICKR30K_PARENTS),
        read=_lines(read_results_csv),
        karpathy=_FLICKR30K_FILE,
    ),
    *(
        Layout(
            name=f"coco-{year}",
            contents=f"train{year}/, val{year}/ and annotations/captions_train{year}.json",
            image_folders=("images", ""),
            caption_files=tuple(f"annotations/captions_{part}.json" for part in _coco_parts(year)),
            read=_coco,
            image_parts=_coco_parts(year),
            by_file_name=True,
            karpathy=_COCO_FILE,
        )
        for year in _COCO_YEARS
    ),
    Layout(
        name="plain-csv",
        contents="pictures, or images/, and captions.csv",
        image_folders=_PLAIN_IMAGE_FOLDERS,
        caption_files=("captions.csv",),
        read=_lines(read_caption_csv),
    ),
    Layout(
        name="plain-jsonl",
        contents="pictures, or images/, and captions.jsonl",
        image_folders=_PLAIN_IMAGE_FOLDERS,
        caption_files=("captions.jsonl",),
        read=_lines(read_caption_lines),
    ),
    *(
        Layout(
            name=f"karpathy-{name}",
            contents=f"{contents} and {file}",
            image_folders=image_folders,
            caption_files=(file, f"annotations/{file}"),
            read=_karpathy,
            image_parts=parts,
            by_file_name=True,
        )
        for name, contents, file, image_folders, parts in (
            (
                "flickr8k",
                "Flicker8k_Dataset/",
                _FLICKR8K_FILE,
                (*_OFFICIAL_IMAGE_FOLDERS, *(f"{parent}Images" for parent in _KAGGLE_PARENTS)),
                ("",),
            ),
            ("flickr30k", "flickr30k_images/", _FLICKR30K_FILE, _FLICKR30K_IMAGE_FOLDERS, ("",)),
            ("coco", "train2014/", _COCO_FILE, ("images", ""), _coco_parts(*_COCO_YEARS)),
        )
    ),
)
