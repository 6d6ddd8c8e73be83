"""Decoded pictures: in memory, or packed once into a file that every process maps, so that a crop costs a copy.

A pack is two files. `<set>-<state>.pixels` holds the arrays one after another, `<set>-<state>.json` where each of them
lies; the second is written last and makes the first count. The name says which files were packed for what, and in which
state they were: size and time of each. Once they change, the pack of before is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from filelock import FileLock

from densekit.datasets.pictures import Pixels
from densekit.errors import DataError
from densekit.files import atomic_write, printable

FORMAT = 1  # goes up whenever a pack made before must not be used any more: its layout, or how files become pixels

_HEX = 16 * "[0-9a-f]"  # as `_digest` writes it

Source: TypeAlias = tuple[Path, ...]
Record: TypeAlias = tuple[Pixels, ...]
Read = Callable[[Source], list[Record]]


def load_all(name: str, sources: Sequence[Source], read: Read, cache: str | None) -> list[list[Record]]:
    """Returns the records of each source: uint8 arrays, not to be written to.

    Each source is read once, however often it is named.

    Args:
        name: what `read` makes of a source; packs of one name and the same sources are taken for each other.
        sources: the files of each item.
        read: makes the records of one source, in any of several threads.
        cache: a folder, made if missing. The arrays are then views of a file in it, whose memory all processes share
            and the system may take back; to another process they go as their place in it. None decodes into memory.

    Raises:
        ImageError, DataError: as `read`; the first fault in the order of the sources.
        DataError: a file is gone, or the folder cannot be written.
    """
    unique = list(dict.fromkeys(sources))
    if cache is None or not unique:
        records = dict(zip(unique, _read_each(unique, read), strict=True))
    else:
        records = dict(zip(unique, _load_packed(Path(cache), name, unique, read), strict=True))
    return [records[source] for source in sources]


class Mapped(np.ndarray[Any, np.dtype[np.uint8]]):
    """An array in a pack; pickled as its place there, while what is computed from it is pickled as usual."""

    __slots__ = ("place",)
    place: tuple[str, tuple[int, int], int]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if hasattr(self, "place"):
            return _mapped_array, (*self.place, self.shape)
        return np.asarray(self).__reduce_ex__(protocol)


class _Unusable(Exception):
    """A pack that is not there, or not as it was written; the text, if any, says in what way."""


_maps: weakref.WeakValueDictionary[tuple[str, tuple[int, int]], mmap.mmap] = weakref.WeakValueDictionary()


def _mapped_array(path: str, state: tuple[int, int], offset: int, shape: tuple[int, ...]) -> Mapped:
    """Returns an array in a file of pixels that has the (size, time of change) `state`, mapped once in each process."""
    pixels = _maps.get((path, state))
    if pixels is None:
        try:
            with open(path, "rb") as file:  # noqa: PTH123  a Path for each array would cost more than the rest
                if _state(os.fstat(file.fileno())) != state:
                    raise DataError(f"{printable(path)}: has changed since it was opened; start again")
                pixels = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{printable(path)}: cannot be opened again ({error.strerror}); start again") from error
        _maps[path, state] = pixels
    if offset < 0:  # which numpy takes, and reads what lies before
        raise ValueError(offset)
    array = Mapped(shape, np.uint8, pixels, offset)
    array.place = (path, state, offset)
    return array


def _state(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _read_each(sources: Sequence[Source], read: Read) -> Iterator[list[Record]]:
    """Yields the records of each source in order; a few are decoded ahead, beside each other."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(read, source) for source in sources[:threads])
        for source in sources[threads:]:
            yield ahead.popleft().result()
            ahead.append(pool.submit(read, source))
        while ahead:
            yield ahead.popleft().result()


def _load_packed(folder: Path, name: str, sources: Sequence[Source], read: Read) -> list[list[Record]]:
    """Returns the records from the pack in `folder`, which is made first where it is missing, stale or damaged."""
    try:
        states = [_state(path.stat()) for source in sources for path in source]
    except OSError as error:
        raise DataError(f"{printable(error.filename)}: {error.strerror}; expected a file that can be read") from error
    places = [[os.path.abspath(path) for path in source] for source in sources]  # noqa: PTH100  links stay what they are
    kept = _digest(name, places)
    pack = folder.absolute() / f"{kept}-{_digest(FORMAT, states)}"
    with contextlib.suppress(_Unusable):
        return _open_pack(pack, len(sources))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # whoever packs something: leftovers are then nobody's
            try:
                return _open_pack(pack, len(sources))  # another process has made it meanwhile
            except _Unusable as fault:
                if text := str(fault):
                    sys.stderr.write(f"warning: {printable(pack)}.json: {text}; packing the pictures again\n")
            for leftover in folder.glob(f".{_HEX}-{_HEX}.*.tmp*"):
                leftover.unlink()
            sys.stderr.write(f"packing {len(sources)} pictures into {printable(folder)}, once\n")
            _write_pack(pack, _read_each(sources, read))
            for old in folder.glob(f"{kept}-*"):
                if old.stem != pack.name:
                    old.unlink()
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: cannot be written ({error.strerror}); free some space there, or choose another "
            "data.cache"
        ) from error
    try:
        return _open_pack(pack, len(sources))
    except _Unusable as fault:
        raise DataError(f"{printable(pack)}.json: {fault or 'is gone'} right after it was written") from fault


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _write_pack(pack: Path, records: Iterable[list[Record]]) -> None:
    """Writes both files of a pack, or neither; what is half written is gone again.

    Raises:
        OSError: the disk refuses.
    """
    index, pixels = pack.with_suffix(".json"), pack.with_suffix(".pixels")
    temporary = pack.with_name(f".{pixels.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            places = [[[_append(file, array) for array in record] for record in group] for group in records]
            file.write(b"\0")  # nothing at all cannot be mapped
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        index.unlink(missing_ok=True)  # from here to its return no process takes the pixels for whole
        temporary.replace(pixels)
        entries = {"size": size, "places": places}
        atomic_write(index, json.dumps({"sha256": _checksum(entries), **entries}).encode())
    except BaseException:
        for path in (temporary, pixels, index):
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _append(file: BinaryIO, array: Pixels) -> tuple[int, tuple[int, ...]]:
    """Writes an array; returns where it begins, and its shape."""
    assert array.dtype == np.uint8
    offset = file.tell()
    file.write(np.ascontiguousarray(array).data)
    return offset, array.shape


def _checksum(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _open_pack(pack: Path, count: int) -> list[list[Record]]:
    """Returns the records of the `count` sources in a pack.

    Raises:
        _Unusable: it is not there or damaged.
    """
    try:
        text = pack.with_suffix(".json").read_bytes()
    except FileNotFoundError:
        raise _Unusable from None
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from error
    try:
        entries = json.loads(text)
        if entries.pop("sha256") != _checksum(entries) or len(entries["places"]) != count:
            raise _Unusable("is damaged")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _Unusable("is damaged") from error
    path = str(pack.with_suffix(".pixels"))
    try:
        state = _state(os.stat(path))  # noqa: PTH116  as text: the name goes along with each array
        if state[0] != entries["size"]:
            raise _Unusable(f"its pixels have {state[0]} bytes, expected {entries['size']}")
        return [
            [tuple(_mapped_array(path, state, offset, tuple(shape)) for offset, shape in record) for record in group]
            for group in entries["places"]
        ]
    except OSError as error:
        raise _Unusable(f"its pixels cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _Unusable("is damaged") from error
