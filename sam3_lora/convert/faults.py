"""What is wrong with the files of a conversion: all of it in one pass, with file and line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

FAULTS_KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault; `line` counts from 1."""

    file: Path
    line: int | None
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


class ConversionError(DatasetError):
    """The files cannot be converted, and nothing was written; `faults` are the first of `count`."""

    def __init__(self, faults: list[Fault], count: int) -> None:
        more = f" (and {count - 1:,} more faults)" if count > 1 else ""
        super().__init__(f"{faults[0]}{more}", hint=faults[0].hint)
        self.faults = faults
        self.count = count


class Faults:
    """Collects faults in bounded memory."""

    def __init__(self) -> None:
        self._kept: list[Fault] = []
        self.count = 0

    def add(self, file: Path, message: str, hint: str = "", *, line: int | None = None) -> None:
        self.count += 1
        if len(self._kept) < FAULTS_KEPT:
            self._kept.append(Fault(file=file, line=line, message=message, hint=hint))

    def check(self) -> None:
        """Go on only without faults.

        Raises:
            ConversionError: if there are any.
        """
        if self.count:
            raise ConversionError(self._kept, self.count)
