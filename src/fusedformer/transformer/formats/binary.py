"""Reading a binary file that may be truncated or made by someone hostile: every length is checked before it is used."""

import mmap
import struct
from pathlib import Path

import numpy as np


class Cursor:
    """A position in the bytes of the file called `name`, which moves past what it reads.

    Raises:
        ValueError: from every method, if the file ends before what it should hold; the message names the file.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def number(self, code: str) -> int | float | bool:
        """The next number, little-endian, of a type code of the `struct` module."""
        value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def integer(self, code: str) -> int:
        """The next number, an integer."""
        return int(self.number(code))

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        end = self.position + size
        if end > len(self.data):
            raise ValueError(
                f"{self.name} is truncated or corrupt: {size} bytes expected at {self.position} of {len(self.data)}"
            )
        taken, self.position = self.data[self.position : end], end
        return taken

    def text(self, size_code: str) -> str:
        """The next text in UTF-8, behind its size in bytes, whose type code is given."""
        (text,) = self.texts(1, size_code)
        return text

    def texts(self, count: int, size_code: str) -> list[str]:
        """The next so many texts. A vocabulary has 100,000 of them: this is why the loop looks nothing up."""
        size = struct.Struct("<" + size_code)
        read_size, width, data, position, texts = size.unpack_from, size.size, self.data, self.position, []
        try:
            for _ in range(count):
                start = position + width
                position = start + read_size(data, position)[0]
                texts.append(str(data[start:position], "utf-8"))
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.name} is truncated or corrupt: no text in UTF-8 at {position}: {error}") from error
        self.take(position - self.position)
        return texts


def map_file(path: Path) -> memoryview:
    """The bytes of a file, read as they are used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is truncated or corrupt: it is empty")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def as_written(value: float) -> float:
    """The shortest decimal that becomes this float32, such as 1e-05 for 9.999999747378752e-06: what somebody wrote."""
    return float(str(np.float32(value)))
