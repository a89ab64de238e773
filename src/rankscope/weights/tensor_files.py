"""Files of named tensors: safetensors, torch and numpy archives. Nothing in them is ever
executed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import weakref
import zipfile
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankscope.weights.limits import HEADER_BYTES, UNPACKED_FREE, UNPACKED_RATIO
from rankscope.weights.tensors import PIECE, Header, Tensors, check_names, once, one_line
from rankscope.weights.torch_file import open_torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "BOOL": torch.bool,
}
NUMPY = {
    np.dtype(name): getattr(torch, name)
    for name in (
        "float64",
        "float32",
        "float16",
        "int64",
        "int32",
        "int16",
        "uint32",
        "int8",
        "uint8",
        "bool",
    )
} | {np.dtype("V2"): torch.bfloat16}  # unknown to numpy: MLX writes two plain bytes


def open_tensors(path: Path) -> Tensors:
    """A ``.safetensors`` or ``.npz`` file, or any other file as a dictionary of tensors written by
    ``torch.save``.

    Raises ``ValueError``, one line, for a file that is truncated, malformed, or holds anything but
    tensors.
    """
    kinds = {".safetensors": _open_safetensors, ".npz": _open_numpy}
    with no_collection():
        tensors = kinds.get(path.suffix, open_torch)(path)
    check_names(path, tensors.headers)
    return tensors


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Garbage is not looked for meanwhile: among the objects of 100,000 new tensors it takes three
    quarters of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class OpenFile:
    """A file that is opened once and read in parts. Memory-mapped parts would stay in memory."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.number)

    def read(self, start: int, length: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The tensor whose values start at byte ``start``. ``OSError`` if the file has shrunk.

        Linux reads ahead while it is asked for a megabyte at a time. One request for a large tensor
        waits for the disk piece by piece: 0.4 instead of 1.1 GB/s (docs/log.md).
        """
        data = torch.empty(length, dtype=torch.uint8)
        view, done = memoryview(data.numpy()), 0  # type: ignore[arg-type]
        while done < length:
            count = os.preadv(self.number, [view[done : done + PIECE]], start + done)
            if count == 0:
                raise OSError("the file ends early")
            done += count
        return data.view(dtype).reshape(shape)


def _open_safetensors(path: Path) -> Tensors:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if HEADER_BYTES < size <= path.stat().st_size:
            raise ValueError(f"a header of {size} bytes, above {HEADER_BYTES}")
        with safe_open(
            path, framework="pt", device="cpu"
        ) as checked:  # offsets, sizes and dtypes are sound
            metadata = checked.metadata() or {}
        with path.open("rb") as file:
            file.seek(8)
            # safetensors silently keeps the last of two tensors of one name; here they are refused.
            content = json.loads(file.read(size), object_pairs_hook=once)
        content.pop("__metadata__", None)
        opened = OpenFile(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a complete safetensors file; found {one_line(error)}. "
            "Download or save the file again."
        ) from error
    headers, readers, places = {}, {}, {}
    for name, part in content.items():
        start, end = part["data_offsets"]
        headers[name] = Header(tuple(part["shape"]), DTYPES.get(part["dtype"]))
        places[name] = (path, 8 + size + start, end - start)
        readers[name] = _reader(opened, path, name, headers[name], 8 + size + start, end - start)
    return Tensors(str(path), headers, readers, metadata, places)


def _reader(
    opened: OpenFile, path: Path, name: str, header: Header, start: int, length: int
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        assert header.dtype is not None
        try:
            return opened.read(start, length, header.dtype, header.shape)
        except OSError as error:
            raise ValueError(f"{path}: {name} can't be read: {one_line(error)}.") from error

    return read


def _open_numpy(path: Path) -> Tensors:
    """An archive of arrays written by ``numpy.savez`` or MLX; arrays of Python objects are
    refused."""
    headers, readers = {}, {}
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            unpacked = sum(part.file_size for part in parts)
            if unpacked > max(UNPACKED_FREE, UNPACKED_RATIO * path.stat().st_size):
                raise ValueError(f"one that unpacks to {unpacked} bytes")
            for part in parts:
                name = part.filename.removesuffix(".npy")
                if name in headers:
                    raise ValueError(f"the name {name[:80]!r} twice")
                headers[name] = _numpy_header(archive, part)
                readers[name] = _numpy_reader(path, part.filename, headers[name])
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        RuntimeError,  # includes NotImplementedError
        EOFError,
    ) as error:
        raise ValueError(
            f"{path}: expected an archive of arrays as numpy.savez writes it; found "
            f"{one_line(error)}."
        ) from error
    return Tensors(str(path), headers, readers)


def _numpy_header(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> Header:
    with archive.open(part) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject or prod(shape) * dtype.itemsize > part.file_size:
            raise ValueError(f"{part.filename[:80]} of {dtype} {shape} in {part.file_size} bytes")
    return Header(shape, NUMPY.get(dtype))


def _numpy_reader(path: Path, member: str, header: Header) -> Callable[[], Tensor]:
    def read() -> Tensor:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: {member} can't be read: {one_line(error)}.") from error
        if header.dtype == torch.bfloat16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array))

    return read
