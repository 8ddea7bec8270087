"""Reading a binary file that may be truncated or made by someone hostile: every length is checked before it is used."""

import mmap
import struct
from pathlib import Path


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

    def text(self, size: int) -> str:
        """The next `size` bytes as UTF-8."""
        start = self.position
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} is corrupt: the text at {start} is not UTF-8: {error}") from error


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
