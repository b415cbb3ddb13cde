"""The bytes of a TFRecord file: each record with its length, and checksums of both."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

# Length uint64, its checksum uint32, the bytes, their checksum uint32; little-endian.
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def check_lengths(file: str) -> None:
    """Raises ValueError where a record claims more bytes than its file has: TensorFlow would ask for so much memory,
    and end the process.  Other damage is left to the reader."""
    size = os.path.getsize(file)
    with open(file, "rb") as stream:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            if masked_checksum(header[:8]) != checksum:
                return
            if length > size:
                raise ValueError(f"a record of {length} bytes in {file}, which has {size}: truncated, or no record.")
            stream.seek(length + FOOTER.size, os.SEEK_CUR)


def masked_checksum(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and moved so that the checksum of one is no fixed point."""
    import google_crc32c

    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """A record as it stands in a file."""
    length = struct.pack("<Q", len(record))
    header = length + FOOTER.pack(masked_checksum(length))
    return header + record + FOOTER.pack(masked_checksum(record))


def is_intact(stream: BinaryIO) -> bool:
    """Reads the next record; whether it is whole, and as its checksums say."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size or HEADER.unpack(header)[1] != masked_checksum(header[:8]):
        return False
    length = HEADER.unpack(header)[0]
    if length > os.fstat(stream.fileno()).st_size:
        return False
    record, footer = stream.read(length), stream.read(FOOTER.size)
    whole = len(record) == length and len(footer) == FOOTER.size
    return whole and FOOTER.unpack(footer)[0] == masked_checksum(record)
