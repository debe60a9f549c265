"""Keras models as small files: weights rounded to the bits that matter, then deflated."""

import json
import re
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np


def rounded(weights: np.ndarray, bits: int) -> np.ndarray:
    """Round float32 `weights` to `bits` significant bits; the bits given up are zero.

    Float32 has 24, float16 11, bfloat16 8. Zero bits deflate to nothing.
    """
    mantissa, exponent = np.frexp(weights)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def save_compact(model: keras.Model, path: Path) -> None:
    """Save as `.keras` with its weights deflated byte plane by byte plane, and fixed dates.

    The same model gives the same bytes, whenever and wherever it is saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        full, whole, small = (Path(folder, name) for name in ("a.keras", "whole.h5", "small.h5"))
        model.save(full)
        with zipfile.ZipFile(full) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        whole.write_bytes(members["model.weights.h5"])
        with h5py.File(whole) as source, h5py.File(small, "w") as target:
            source.visititems(lambda name, item: _copy_deflated(name, item, target))
        members["model.weights.h5"] = small.read_bytes()
        metadata = json.loads(members["metadata.json"])
        metadata["date_saved"] = "2020-01-01@00:00:00"
        members["metadata.json"] = json.dumps(metadata).encode()
        # object ids are memory addresses, different on every run, and nothing is shared here
        config = re.sub(rb', "shared_object_id": \d+', b"", members["config.json"])
        members["config.json"] = config
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)


def _copy_deflated(name: str, item: h5py.Dataset | h5py.Group, target: h5py.File) -> None:
    if isinstance(item, h5py.Dataset):
        packing = {}
        if item.shape:  # a lone number stays as it is
            packing = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
            packing["chunks"] = item.shape
        target.create_dataset(name, data=item[()], **packing)
    else:
        target.require_group(name)
    for key, value in item.attrs.items():
        target[name].attrs[key] = value
