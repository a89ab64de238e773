"""Reads files of ``torch.save`` with ``weights_only=True``, after checking their pickle.

``weights_only`` runs no foreign code, but it still calls ``bytearray(8 * 10**9)``,
``torch.Tensor(10**5, 10**5)`` and the hash of a tuple of tuples of tuples, which takes 2^k steps.
So the pickle's operations are checked first, without executing them: only the calls that a
dictionary of tensors needs are allowed, and no tuple may be large.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rankscope.weights.limits import (
    BYTES_A_STEP,
    PICKLE_BYTES,
    PICKLE_STEPS,
    TUPLE_SIZE,
    UNPACKED_FREE,
    UNPACKED_RATIO,
)
from rankscope.weights.tensors import Tensors, from_state_dict, one_line

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
MAGIC = 0x1950A86A20F9469CFC6C  # the first of the four pickles before the tensors of torch < 1.6
CALLED = {
    "collections OrderedDict", "collections Counter", "collections defaultdict", "_codecs encode",
    "builtins set", "__builtin__ set", "builtins complex", "__builtin__ complex", "torch Size",
    "torch device",
    "torch.serialization _get_layout", "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state", "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._utils _rebuild_nested_tensor",
}  # fmt: skip
FAILS = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    IndexError,
    AssertionError,
    MemoryError,
    RecursionError,
    OverflowError,
    zipfile.BadZipFile,
)


def open_torch(path: Path) -> Tensors:
    """A dictionary of tensors. ``ValueError``, one line, for anything else."""
    try:
        zipped = zipfile.is_zipfile(path)
        if not zipped and not _is_pickle(path):
            raise ValueError("another kind of file, neither a zip archive nor a pickle")
        _check_archive(path) if zipped else _check_old(path)
        with (
            warnings.catch_warnings()
        ):  # of old pickle protocols and storages: no concern of the reader
            warnings.simplefilter("ignore")
            # Only the zip format of torch >= 1.6 can be mapped into memory
            # instead of being read at once.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, Unsafe) as error:
        code = re.search(r"(?:Unsupported global: GLOBAL|a call of) ([\w.]+)", str(error))
        found = f"pickled code ({code[1]})" if code else "something else, perhaps pickled code"
        raise ValueError(
            f"{path}: expected tensors only, written by torch.save; found {found}. Nothing of "
            "it was "
            "executed. Ask its author for safetensors, or save a plain state_dict."
        ) from error
    except FAILS as error:
        raise ValueError(
            f"{path}: expected a complete file written by torch.save; found {one_line(error)}. "
            "Download or save the file again."
        ) from error
    return from_state_dict(str(path), _state_dict(path, loaded))


class Unsafe(Exception):
    """A pickle that needs more than a dictionary of tensors does."""


def _check_archive(path: Path) -> None:
    """Refuses archives that torch does not write: its are uncompressed, with one pickle. In others
    a kilobyte may unpack to a terabyte."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        size = sum(part.file_size for part in parts)
        if size > path.stat().st_size:
            raise ValueError(f"one that unpacks to {size} bytes")
        pickles = [part for part in parts if part.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(set(names)) < len(names):
            raise ValueError(f"one with {len(pickles)} data.pkl, or with one name twice")
        if pickles[0].file_size > PICKLE_BYTES:
            raise ValueError(
                f"one with a data.pkl of {pickles[0].file_size} bytes, above {PICKLE_BYTES}"
            )
        with archive.open(pickles[0]) as file:
            _walk(file, _steps(path))


def _is_pickle(path: Path) -> bool:
    """Whether the file begins as torch's pickles do, with the opcode of protocol 2 and later."""
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def _check_old(path: Path) -> None:
    """torch < 1.6: a magic number, a version, facts of the machine and the dictionary, each a
    pickle."""
    with path.open("rb") as file:
        if _walk(file, _steps(path)) == MAGIC:
            for _ in range(3):
                _walk(file, _steps(path))


def _steps(path: Path) -> int:
    return PICKLE_STEPS + path.stat().st_size // BYTES_A_STEP


def _walk(file: IO[bytes], steps: int) -> object:
    """Follows a pickle without making anything. Gives the last constant in it.

    ``Unsafe`` for a call that no dictionary of tensors needs; ``ValueError`` for a tuple that
    is too large when all that it shares is written out. Of what is on the stack it knows the
    size and, of a global, the name.
    """
    stack: list[tuple[int, str | None] | None] = []  # (size, global); None: a mark
    memo: dict[int, tuple[int, str | None]] = {}
    last: object = None
    for step, (operation, argument, place) in enumerate(pickletools.genops(file)):
        name = operation.name
        if step > steps:
            raise ValueError(f"a pickle of more than {steps} steps")
        if (place or 0) > PICKLE_BYTES:
            raise ValueError(f"a pickle above {PICKLE_BYTES} bytes")
        if name == "MARK":
            stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] or (1, None)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument or 0, (1, None)))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":  # which torch refuses, too
                raise Unsafe("a global whose name is computed")
            stack.append((1, argument))
        elif name == "INST" or name == "OBJ":
            raise Unsafe(f"a call of {str(argument or name).replace(' ', '.')}")
        else:
            if name == "REDUCE" and (called := (stack[-2] or (1, None))[1]) not in CALLED:
                raise Unsafe(f"a call of {str(called).replace(' ', '.')}")
            taken = _taken(stack, operation)
            whole = 1 + sum(size for size, _ in taken)
            if ("TUPLE" in name and whole > TUPLE_SIZE) or name == "FROZENSET":
                raise ValueError(f"a tuple of more than {TUPLE_SIZE} parts in parts")
            sizes = whole if "TUPLE" in name else 1
            stack.extend([(sizes, None)] * len(operation.stack_after))
            last = argument if isinstance(argument, int) else last
    return last


def _taken(
    stack: list[tuple[int, str | None] | None], operation: Any
) -> list[tuple[int, str | None]]:
    """What the operation takes from the stack."""
    taken = []
    before = operation.stack_before
    if pickletools.markobject in before:
        while (top := stack.pop()) is not None:
            taken.append(top)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop() or (1, None))
    return taken


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The dictionary of tensors, also where a trainer wrapped it in another one."""
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            inner = loaded.get(wrapper)
            if isinstance(inner, Mapping) and any(
                isinstance(value, Tensor) for value in inner.values()
            ):
                loaded = inner
                break
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            if (why := _unstored(tensor)) is not None:
                raise ValueError(
                    f"{path}: expected every tensor stored in full; found {name} {why}."
                )
        _check_views(path, tensors)
        if tensors:
            return tensors
    raise ValueError(
        f"{path}: expected a dictionary of named tensors; found {type(loaded).__name__} "
        "without any. "
        "Save model.state_dict()."
    )


def _check_views(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tied weights are views of one another; a file of nothing but views is hours of work."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > max(UNPACKED_FREE, UNPACKED_RATIO * path.stat().st_size):
        raise ValueError(
            f"{path}: expected every tensor stored in full; found {len(tensors)} views that hold "
            f"{size} bytes when written out."
        )


def _unstored(tensor: Tensor) -> str | None:
    """How a tensor differs from numbers in a file; None if it doesn't.

    A view with stride 0 claims a terabyte in a file of a kilobyte.
    """
    if tensor.is_nested:
        return "as several of unlike shapes"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f"as {'quantized' if tensor.is_quantized else tensor.layout}"
    if tensor.is_meta:
        return "without its numbers (device meta)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes"
    return None
