"""The file of an offline run of W&B: a log in LevelDB's format of protobuf messages.

After a header of 7 bytes (``:W&B``, 0xBEE1, the version) come blocks of 32 KiB. A block holds
chunks: CRC-32 of kind and data (4 bytes), length (2), kind (1: whole, 2 to 4: first, middle, last
of a message), data; all little-endian. Fewer than 7 bytes left in a block are padding.
The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, with zlib's CRC.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

HEADER = b":W&B\xe1\xbe"
BLOCK, CHUNK = 2**15, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[bytes]:
    """The messages of the file, up to where it ends or was cut off. ``ValueError``, one line, if it
    is another kind of file or a chunk's checksum is wrong."""
    data = path.read_bytes()
    if data[: len(HEADER)] != HEADER:
        raise ValueError(f"{path}: expected an offline run of W&B; found another kind of file")
    at, parts = CHUNK.size, list[bytes]()
    while at + CHUNK.size <= len(data):
        if (left := BLOCK - at % BLOCK) < CHUNK.size:
            at += left
            continue
        checksum, length, kind = CHUNK.unpack_from(data, at)
        if kind == 0 and length == 0:  # the rest of the block was never written
            at += left
            continue
        chunk = data[at + CHUNK.size : at + CHUNK.size + length]
        if len(chunk) < length:  # cut off while it was written
            return
        if kind > LAST or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"{path}: damaged at byte {at}: a checksum is wrong")
        at += CHUNK.size + length
        parts = [chunk] if kind in (WHOLE, FIRST) else [*parts, chunk]
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []
