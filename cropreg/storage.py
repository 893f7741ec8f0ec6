"""Files by URI: local paths and ``s3://``, ``gs://``, ``abfs://`` objects through :mod:`pyarrow.fs`, always read and written whole.

A URI here is an absolute local path, or a string with a scheme.  A local name that is not UTF-8 becomes a percent-encoded ``file://``
URI, because Arrow strings and JSON cannot hold it otherwise; :func:`local_path` turns it back.  Keys of an object store stand as they
are, never encoded.  Credentials, region and endpoint come from where its own tools take them (``AWS_ENDPOINT_URL`` and the like).
"""

from __future__ import annotations

import errno
import functools
import heapq
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from cropreg.errors import InputError, OutputError, UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_REMOTE_RETRIES = 3
TEMPORARY_PREFIX = ".tmp-"  # readers of datasets skip names that start with a dot; a suffix would be read as data


@dataclass(frozen=True, slots=True)
class Entry:
    """One file found below a folder: its path relative to it (``/`` between parts), its URI, and what changes when it changes."""

    relative: str
    uri: str
    size: int
    mtime_ns: int

    @property
    def stamp(self) -> str:
        """Size and modification time as one string: another stamp means other content."""
        return f"{self.size}-{self.mtime_ns}"


def is_remote(uri: str) -> bool:
    """Whether a URI lies on an object store.

    >>> is_remote("s3://bucket/a"), is_remote("/tmp/a"), is_remote("C:/a")
    (True, False, False)
    """
    scheme, sep, _ = uri.partition("://")
    return bool(sep) and scheme in REMOTE_SCHEMES


def absolute(uri: str | os.PathLike[str]) -> str:
    """Makes a local path absolute, since workers run in another folder; a URI with a scheme is returned as it is.

    >>> absolute("file:///a%20b/../c"), absolute("s3://bucket//a b/")
    ('/c', 's3://bucket/a b')

    Raises:
        UsageError: the scheme is not one that cropreg reads, or no place follows it.
    """
    text = os.fspath(uri)
    scheme, sep, rest = text.partition("://")
    if not sep:
        return path_to_uri(os.path.abspath(os.path.expanduser(text)))
    if scheme == "file":
        if not rest.startswith("/"):
            raise UsageError(f"{text}: a file:// URI needs an absolute path, with three slashes: file:///folder.")
        return path_to_uri(os.path.abspath(local_path(text)))
    if scheme not in REMOTE_SCHEMES:
        raise UsageError(f"{text}: the scheme {scheme}:// is not known. Use a local path, s3://, gs:// or abfs://.")
    names = [name for name in rest.split("/") if name]  # Arrow refuses a key with an empty part
    if not names:
        raise UsageError(f"{text}: no bucket is named. Write {scheme}://BUCKET/FOLDER.")
    return f"{scheme}://{'/'.join(names)}"


def path_to_uri(path: str) -> str:
    """Turns a local path into a URI that any table can hold; a UTF-8 path is returned as it is.

    >>> path_to_uri("/a/b.jpg"), path_to_uri("/a/\\udcff.jpg")
    ('/a/b.jpg', 'file:///a/%FF.jpg')
    """
    text = as_text(path)
    return path if text == path else "file://" + text


def as_text(name: str) -> str:
    """A name as tables, JSON and messages can hold it: as it is when it is UTF-8, else percent-encoded.

    >>> as_text("50%.jpg"), as_text("\\udcff.jpg")
    ('50%.jpg', '%FF.jpg')
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return quote(os.fsencode(name))
    return name


def local_path(uri: str) -> str:
    """The local path of a URI: the inverse of :func:`path_to_uri`.

    >>> local_path("file:///a/%FF.jpg") == "/a/\\udcff.jpg"
    True
    """
    if is_remote(uri):
        raise ValueError(f"{uri} is not a local file")
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file://") else uri


def join(base: str, *parts: str) -> str:
    """Joins a URI and relative parts; parts that are not UTF-8 are percent-encoded, locally by a ``file://`` URI of the whole."""
    if is_remote(base):
        return posixpath.join(base, *map(as_text, parts))
    return path_to_uri(os.path.join(local_path(base), *parts))


def name_of(uri: str) -> str:
    """The last part of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


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


def _kind(uri: str) -> Any:
    """The :class:`pyarrow.fs.FileType` of a remote URI."""
    system, path = filesystem(uri)
    return system.get_file_info(path).type


def read_bytes(uri: str) -> bytes:
    """Reads one file whole.

    Raises:
        FileNotFoundError, PermissionError, OSError: as the system says; the caller knows what the file was for.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if not os.path.isfile(path):
            if os.path.exists(path):  # a pipe would block for ever, a folder raises something less clear
                raise IsADirectoryError(f"{uri} is not a regular file")
            raise FileNotFoundError(f"{uri} does not exist")
        with open(path, "rb") as f:
            return f.read()
    system, path = filesystem(uri)
    for attempt in range(_REMOTE_RETRIES):
        try:
            with system.open_input_file(path) as f:
                return bytes(f.read())
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == _REMOTE_RETRIES - 1:
                raise
    raise AssertionError("unreachable")


def exists(uri: str) -> bool:
    """Whether there is a file or a folder (on an object store: a key, or keys below it).

    Raises:
        InputError: the object store does not answer, or not to us.
    """
    if not is_remote(uri):
        return os.path.exists(local_path(uri))
    from pyarrow import fs

    try:
        return bool(_kind(uri) != fs.FileType.NotFound)
    except OSError as error:
        raise _cannot_reach(uri, error) from error


def is_folder(uri: str) -> bool:
    """Whether a URI is a folder.

    Raises:
        InputError: the object store does not answer, or not to us.
    """
    if not is_remote(uri):
        return os.path.isdir(local_path(uri))
    from pyarrow import fs

    try:
        return bool(_kind(uri) == fs.FileType.Directory)
    except OSError as error:
        raise _cannot_reach(uri, error) from error


def write_whole(uri: str, data: bytes, *, overwrite: bool = True) -> None:
    """Writes a file so that it is there whole or not at all: beside, synced, then renamed; on an object store by one upload.

    Raises:
        OutputError: it exists and ``overwrite`` is off, or the place cannot be written (full, read-only): the message says which.
    """
    if not overwrite:
        if not create_exclusive(uri, data):
            raise OutputError(f"{uri} exists already and is kept. Use --overwrite or another output folder.")
        return
    try:
        if is_remote(uri):
            _put(uri, data)
            return
        path = local_path(uri)
        temporary = _write_beside(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(os.path.dirname(path))
    except OSError as error:
        raise _cannot_write(uri, error) from error


def create_exclusive(uri: str, data: bytes) -> bool:
    """Writes a file whole, but only if there is none of that name; returns whether it was written.

    On a local disk two processes that try at once cannot both succeed.  An object store is asked first, then written: there the
    window is as long as one request.
    """
    try:
        if is_remote(uri):
            from pyarrow import fs

            if _kind(uri) != fs.FileType.NotFound:
                return False
            _put(uri, data)
            return True
        path = local_path(uri)
        if os.path.exists(path):
            return False
        temporary = _write_beside(path, data)
        try:
            os.link(temporary, path)  # unlike rename, fails when the name is taken
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_folder(os.path.dirname(path))
        return True
    except OSError as error:
        raise _cannot_write(uri, error) from error


def list_files(folder: str, suffixes: tuple[str, ...] | None = None, *, skip: tuple[str, ...] = ()) -> Iterator[Entry]:
    """Lists the files below a folder, depth first, in no fixed order; names that start with a dot are left out.

    Args:
        folder: URI.
        suffixes: only names that end so, in lower case (``(".jpg", ".png")``); all when None.
        skip: URIs of folders not to enter.

    Every folder is listed once, under its own name if that lies below ``folder`` and else under the first link to it in alphabetical
    order: a loop of links ends where it began, and what is found does not depend on the order in which a disk names things.

    Raises:
        InputError: the folder does not exist or cannot be listed.
    """
    if is_remote(folder):
        yield from _list_remote(folder, suffixes, skip)
        return
    root = local_path(folder)
    if not os.path.isdir(root):
        raise InputError(f"{folder}: there is no such folder. Check the path, and that this machine can see it.")
    seen = {_identity(path) for path in map(local_path, (s for s in skip if not is_remote(s))) if os.path.isdir(path)}
    folders, links = [("", root)], list[tuple[str, str]]()
    while folders or links:
        prefix, path = folders.pop() if folders else heapq.heappop(links)
        try:
            identity = _identity(path)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(path) as scan:
                for item in scan:
                    if item.name.startswith("."):
                        continue
                    if _is_dir(item):
                        below = (prefix + item.name + "/", item.path)
                        if item.is_symlink():
                            heapq.heappush(links, below)
                        else:
                            folders.append(below)
                    elif suffixes is None or item.name.lower().endswith(suffixes):
                        yield _entry(item, prefix)
        except OSError as error:
            raise InputError(f"{path_to_uri(path)}: this folder cannot be listed ({error.strerror}).") from error


def make_folder(uri: str) -> None:
    """Makes a local folder and its parents; an object store needs none.

    Raises:
        OutputError: it cannot be made.
    """
    if is_remote(uri):
        return
    try:
        os.makedirs(local_path(uri), exist_ok=True)
    except OSError as error:
        raise _cannot_write(uri, error) from error


def remove(uri: str) -> None:
    """Removes a file or a folder with all it holds; nothing happens when there is none.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        if is_remote(uri):
            _remove_remote(uri)
            return
        path = local_path(uri)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be removed ({error.strerror or error}).") from error


def _remove_remote(uri: str) -> None:
    from pyarrow import fs

    system, path = filesystem(uri)
    kind = system.get_file_info(path).type
    if kind == fs.FileType.Directory:
        system.delete_dir(path)
    elif kind == fs.FileType.File:
        system.delete_file(path)


def _identity(path: str) -> tuple[int, int]:
    """What two names of the same folder share."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_dir(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads in a circle, or to where nobody may look: a file that fails where it is read
        return False


def _entry(item: os.DirEntry[str], prefix: str) -> Entry:
    """An entry with its stamp; a broken link or a vanished file is listed too, with size -1, and fails where it is read."""
    try:
        status = item.stat()
        size, mtime_ns = status.st_size, status.st_mtime_ns
    except OSError:
        size, mtime_ns = -1, -1
    return Entry(prefix + item.name, path_to_uri(item.path), size, mtime_ns)


def _list_remote(folder: str, suffixes: tuple[str, ...] | None, skip: tuple[str, ...]) -> Iterator[Entry]:
    from pyarrow import fs

    try:
        system, root = filesystem(folder)
        infos = system.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: there is no such folder. Check the path, and that this machine can see it.") from error
    except OSError as error:
        raise _cannot_reach(folder, error) from error
    for info in infos:
        relative = info.path[len(root) :].lstrip("/")
        uri = join(folder, relative)
        hidden = any(part.startswith(".") for part in relative.split("/"))
        if info.type != fs.FileType.File or hidden or any(uri.startswith(s.rstrip("/") + "/") for s in skip):
            continue
        if suffixes is None or relative.lower().endswith(suffixes):
            yield Entry(relative, uri, info.size, info.mtime_ns or 0)


def _write_beside(path: str, data: bytes) -> str:
    """Writes ``data`` to a new hidden file in the folder of ``path``, synced to disk; returns its path."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return temporary


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself must survive a power cut
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot; the file is whole all the same
            raise
    finally:
        os.close(descriptor)


def _put(uri: str, data: bytes) -> None:
    system, path = filesystem(uri)
    with system.open_output_stream(path) as f:
        f.write(data)


def _cannot_reach(uri: str, error: OSError) -> InputError:
    return InputError(f"{uri}: cannot be reached ({error}). Check the address and your credentials.")


def _cannot_write(uri: str, error: OSError) -> OutputError:
    cause = error.strerror or str(error)
    return OutputError(f"{uri}: cannot be written ({cause}). What was finished is kept; free or unlock the place and run again.")
