"""A table of labels: a CSV file with one line per image."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dneuro import events
from dneuro.errors import ImageSourceError
from dneuro.images.paths import content_of
from dneuro.images.storage import some

COLUMNS = {
    "file": ("filename", "file_name", "file", "path", "image", "imageid", "image_id"),
    "wnid": ("wnid", "synset", "predictionstring"),
    "index": ("class_index", "index", "class_id", "target"),
    "name": ("class_name", "category"),
    "any": ("label", "class"),
}
"""What a column holds, by its name in the first line; ``any`` is told by its content."""

Line = tuple[int, list[str]]
"""Number and cells."""

WNID = re.compile(r"n\d{8}")
"""A WordNet id, as ImageNet names its classes."""

_HEADER = "begin with a line that names the columns, such as filename,wnid or filename,class_index"


@dataclass(frozen=True)
class Row:
    """What one line says; what it does not say is empty.

    Parameters
    ----------
    line : int
        Number of the line, from 1.
    image : int
        Index of the image.
    wnid, index, name : str
        Its class.
    """

    line: int
    image: int
    wnid: str = ""
    index: str = ""
    name: str = ""

    @property
    def is_labelled(self) -> bool:
        """Whether the line says a class at all."""
        return bool(self.wnid or self.index or self.name)


@dataclass(frozen=True)
class Table:
    """What a table says of every image.

    Parameters
    ----------
    path : str
        The file.
    images : int
        Number of images.
    rows : list of Row
        One per image.
    """

    path: str
    images: int
    rows: list[Row]

    def at(self, row: Row) -> str:
        """Return file and line, for messages."""
        return f"{self.path}:{row.line}"


def read_table(path: str, names: Sequence[str], root: str, content: bytes | None = None) -> Table:
    """Read a CSV file (separated by commas, semicolons or tabs) that has one line per image.

    A first line that names the columns may be left out where there are two: filename and class. A file is named
    by its path below the root, or by its file name, with or without extension, where that is unique. A line
    without a class says that it is not known. Lines of files that are not there are left out with a note, if every
    image has a line: the images may be a part of those that the table is of.

    Parameters
    ----------
    path : str
        The file, or a URL.
    names : sequence of str
        Names of the images.
    root : str
        Where they lie, for messages.
    content : bytes, optional
        What was read of the file before.

    Raises
    ------
    ImageSourceError
        With the line, if a file is given twice or a line has too few columns; or if an image has no line.
    """
    lines = list(_lines(path, content_of(path) if content is None else content))
    if not lines:
        raise ImageSourceError(f"{path} is empty; it needs a line per image", hint=_HEADER)
    columns, lines = _columns(path, lines)
    find = _finder(names)
    rows: dict[int, Row] = {}
    unknown: list[tuple[int, str]] = []
    for line, cells in lines:
        said = {kind: cell for kind, cell in zip(columns, cells, strict=True) if kind}
        if "wnid" in said:
            said["wnid"] = said["wnid"].partition(" ")[0]  # ImageNet's table at Kaggle has boxes behind it
        file = said.pop("file")
        image = find(file, f"{path}:{line}")
        if image is None:
            unknown.append((line, file))
        elif image in rows:
            raise ImageSourceError(
                f"{path}:{line}: {names[image]} is given twice, first in line {rows[image].line}",
                hint="delete one of the two lines",
            )
        else:
            rows[image] = Row(line, image, **said)
    _check_whole(path, names, root, rows, unknown)
    return Table(path, len(names), [rows[image] for image in range(len(names))])


def _lines(path: str, content: bytes) -> Iterator[Line]:
    """Yield number and cells of each line that is not blank."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ImageSourceError(
            f"{path}:{line}: not UTF-8 text; a CSV file is needed", hint=f"iconv -f latin1 -t utf-8 {path}"
        ) from error
    begin = text.partition("\n")[0]
    delimiter = max(",;\t", key=begin.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ImageSourceError(f"{path}:{reader.line_num}: {error}") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield reader.line_num, [cell.strip() for cell in cells]


def _columns(path: str, lines: list[Line]) -> tuple[list[str], list[Line]]:
    """Return what each column holds, empty where that does not matter, and the lines below the header."""
    header = lines[0][1]
    columns = _named(path, header)
    if columns:
        lines = lines[1:]
    elif len(header) == 2:
        columns = ["file", "any"]
    else:
        raise ImageSourceError(
            f"{path}:{lines[0][0]}: {len(header)} columns without names ({some(header)}); two are needed, "
            "filename and class",
            hint=_HEADER,
        )
    for line, cells in lines:
        if len(cells) != len(columns):
            raise ImageSourceError(
                f"{path}:{line}: {len(cells)} columns; the first line has {len(columns)}",
                hint='a cell that holds the separator stands in quotes: "maillot, tank suit"',
            )
    for place, kind in enumerate(columns):
        if kind == "any":
            told = _by_content(cells[place] for _, cells in lines)
            columns[place] = "" if told in columns else told
    return columns, lines


def _named(path: str, header: list[str]) -> list[str]:
    """Return what each column holds by its name; nothing if no column is named as one of files."""
    known = {name: kind for kind, names in COLUMNS.items() for name in names}
    kinds = [known.get(cell.lower(), "") for cell in header]
    if "file" not in kinds:
        return []
    if not set(kinds) - {"", "file"}:
        raise ImageSourceError(
            f"{path}:1: no column of classes among {', '.join(header)}",
            hint="name it wnid, class_index, class_name or label",
        )
    return [kind if kinds.index(kind) == place else "" for place, kind in enumerate(kinds)]


def _by_content(cells: Iterable[str]) -> str:
    """Return what a column of classes holds: the first cell that is not empty tells."""
    first = next(filter(None, cells), "")
    if first.isdigit():
        return "index"
    return "wnid" if WNID.fullmatch(first) else "name"


def _finder(names: Sequence[str]) -> Callable[[str, str], int | None]:
    """Return a function that gives the index of the image that a cell names; None if there is none."""
    whole = {name: image for image, name in enumerate(names)}
    shorter: dict[str, set[int]] = {}
    for image, name in enumerate(names):
        file = name.rpartition("/")[2]
        for short in {file, file.rpartition(".")[0], name.rpartition(".")[0]}:
            shorter.setdefault(short, set()).add(image)

    def find(cell: str, at: str) -> int | None:
        cell = cell.removeprefix("./")
        if cell in whole:
            return whole[cell]
        meant = shorter.get(cell, set())
        if len(meant) > 1:
            raise ImageSourceError(
                f"{at}: {cell!r} may be {some([names[image] for image in sorted(meant)])}",
                hint="name files by their path below the root",
            )
        return next(iter(meant), None)

    return find


def _check_whole(
    path: str, names: Sequence[str], root: str, rows: dict[int, Row], unknown: list[tuple[int, str]]
) -> None:
    absent = [name for image, name in enumerate(names) if image not in rows]
    if unknown and not absent:
        missing = f"{len(unknown):,} of the {len(unknown) + len(rows):,} files that it names"
        events.emit("note", "", f"{path}: {missing} are not in {root}: {some([file for _, file in unknown])}")
    elif unknown:
        line, file = unknown[0]
        others = f", nor are {len(unknown) - 1:,} others" if len(unknown) > 1 else ""
        raise ImageSourceError(
            f"{path}:{line}: {file!r} is not among the {len(names):,} images of {root}{others}",
            hint=f"files are named by their path below the root, such as {names[0]}",
        )
    if absent:
        raise ImageSourceError(
            f"{path} has no line for {len(absent):,} of the {len(names):,} images of {root}: {some(absent)}",
            hint=f"add them; a line without a class, `{absent[0]},`, says that it is not known",
        )
