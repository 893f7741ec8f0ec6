"""Objects of a store, through :mod:`pyarrow.fs`: read and written by one request each."""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cropreg.errors import InputError, UsageError
from cropreg.storage.entry import Entry
from cropreg.storage.uris import join

_RETRIES = 3
_T = TypeVar("_T")


def filesystem(uri: str) -> tuple[Any, str]:
    """The :mod:`pyarrow.fs` file system of a remote URI and the path on it.

    Raises:
        UsageError: the URI does not name a bucket or container that can be.  OSError: it cannot be reached.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    system, base = _connect(f"{scheme}://{bucket}", os.getpid())
    return system, posixpath.join(base, key).rstrip("/")


@functools.lru_cache(maxsize=16)
def _connect(bucket_uri: str, process: int) -> tuple[Any, str]:
    """One file system a bucket: a new one opens new connections, and may ask the store for the bucket's region.

    Per ``process``, because its threads do not live on in a forked child.  Only the bucket goes through Arrow's parser, which takes no
    key with a space in it.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(bucket_uri)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{bucket_uri}: {error}.") from error


def exists(uri: str) -> bool:
    """Whether there is a key, or keys below it."""
    from pyarrow import fs

    return bool(_kind(uri) != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Whether there are keys below it."""
    from pyarrow import fs

    return bool(_kind(uri) == fs.FileType.Directory)


def _kind(uri: str) -> Any:
    """The :class:`pyarrow.fs.FileType` of a remote URI."""
    system, path = filesystem(uri)
    return system.get_file_info(path).type


def read(uri: str) -> bytes:
    """Reads an object; a broken connection is tried again."""
    system, path = filesystem(uri)

    def once() -> bytes:
        with system.open_input_file(path) as f:
            return bytes(f.read())

    return _tried(once)


def replace(uri: str, data: bytes) -> None:
    """Writes an object; it shows when its upload is complete.  A broken connection is tried again."""
    system, path = filesystem(uri)

    def once() -> None:
        with system.open_output_stream(path) as f:
            f.write(data)

    _tried(once)


def _tried(once: Callable[[], _T]) -> _T:
    """What ``once`` returns, tried a few times; what is not there does not come by asking again."""
    for _ in range(_RETRIES - 1):
        try:
            return once()
        except FileNotFoundError:
            raise
        except OSError:
            continue
    return once()


def create(uri: str, data: bytes) -> bool:
    """Writes an object if its key is free; returns whether it was.  The store is asked first: the window is one request long."""
    if exists(uri):
        return False
    replace(uri, data)
    return True


def copy(source: str, target: str) -> None:
    """Copies an object within its store."""
    system, path = filesystem(source)
    system.copy_file(path, filesystem(target)[1])


def remove(uri: str) -> None:
    """Removes a key or all keys below it; nothing happens when there is none."""
    from pyarrow import fs

    system, path = filesystem(uri)
    kind = system.get_file_info(path).type
    if kind == fs.FileType.Directory:
        system.delete_dir(path)
    elif kind == fs.FileType.File:
        system.delete_file(path)


def list_below(folder: str, suffixes: tuple[str, ...] | None, skip: tuple[str, ...]) -> Iterator[Entry]:
    """Lists the objects below a key but for those below the URIs in ``skip``."""
    from pyarrow import fs

    try:
        system, root = filesystem(folder)
        infos = system.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: there is no such folder. Check the path, and that this machine can see it.") from error
    except OSError as error:
        raise cannot_reach(folder, error) from error
    for info in infos:
        relative = info.path[len(root) :].lstrip("/")
        uri = join(folder, relative)
        hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type != fs.FileType.File or hidden or any(uri.startswith(s.rstrip("/") + "/") for s in skip):
            continue
        if suffixes is None or relative.lower().endswith(suffixes):
            yield Entry(relative, uri, info.size, info.mtime_ns or 0)


def cannot_reach(uri: str, error: OSError) -> InputError:
    """The error of a store that does not answer, or not to us."""
    return InputError(f"{uri}: cannot be reached ({error}). Check the address and your credentials.")
