"""Reading, writing, listing and removing by URI, on this machine's disks or an object store."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

from cropreg.errors import OutputError
from cropreg.storage import local, remote
from cropreg.storage.entry import Entry
from cropreg.storage.local import TEMPORARY_PREFIX
from cropreg.storage.uris import is_remote, join, local_path


def read_bytes(uri: str) -> bytes:
    """Reads one file whole.

    Raises:
        FileNotFoundError, PermissionError, OSError: as the system says; the caller knows what the file was for.
    """
    return remote.read(uri) if is_remote(uri) else local.read(uri)


def exists(uri: str) -> bool:
    """Whether there is a file or a folder (on an object store: a key, or keys below it).

    Raises:
        InputError: the object store does not answer, or not to us.
    """
    if not is_remote(uri):
        return os.path.exists(local_path(uri))
    try:
        return remote.exists(uri)
    except OSError as error:
        raise remote.cannot_reach(uri, error) from error


def is_folder(uri: str) -> bool:
    """Whether a URI is a folder.

    Raises:
        InputError: the object store does not answer, or not to us.
    """
    if not is_remote(uri):
        return os.path.isdir(local_path(uri))
    try:
        return remote.is_folder(uri)
    except OSError as error:
        raise remote.cannot_reach(uri, error) from error


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
        (remote if is_remote(uri) else local).replace(uri, data)
    except OSError as error:
        raise _cannot_write(uri, error) from error


def create_exclusive(uri: str, data: bytes) -> bool:
    """Writes a file whole, but only if there is none of that name; returns whether it was written.

    On a local disk two processes that try at once cannot both succeed.  An object store is asked first, then written: there the
    window is as long as one request.
    """
    try:
        return (remote if is_remote(uri) else local).create(uri, data)
    except OSError as error:
        raise _cannot_write(uri, error) from error


def map_bytes(uri: str) -> bytes:
    """The bytes of a file on this machine, fetched only where they are looked at; they read like bytes, and slices are bytes.

    The file must not shrink while they are in use, or the process ends.

    Raises:
        FileNotFoundError, PermissionError, OSError: as :func:`read_bytes`.
    """
    return local.mapped(uri)


def fill_file(uri: str, fill: Callable[[str], None], *, overwrite: bool) -> bool:
    """Writes a file of this machine whole, by a function that is given the path to write to; returns whether it is there now.

    It is not when ``overwrite`` is off and another file has that name.

    Raises:
        OutputError: the place cannot be written, or ``fill`` raised OSError.
    """
    try:
        return local.filled(uri, fill, overwrite=overwrite)
    except OSError as error:
        raise _cannot_write(uri, error) from error


def copy_file(source: str, target: str) -> None:
    """Copies a file in place of the one that may be there; on an object store without fetching it, to the same store.

    Raises:
        OutputError: ``target`` cannot be written.  OSError: ``source`` cannot be read.
    """
    if not is_remote(source):
        write_whole(target, read_bytes(source))
        return
    try:
        remote.copy(source, target)
    except OSError as error:
        raise _cannot_write(target, error) from error


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
        yield from remote.list_below(folder, suffixes, skip)
    else:
        yield from local.list_below(folder, suffixes, tuple(s for s in skip if not is_remote(s)))


def make_folder(uri: str) -> None:
    """Makes a local folder and its parents; of an object store, which needs none, it is tried whether we may write there.

    So a bucket that is not there, or not ours, is told before the work starts that would be written to it.

    Raises:
        OutputError: it cannot be made, or not be written to.
    """
    try:
        if is_remote(uri):
            probe = join(uri, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
            remote.replace(probe, b"")
            remote.remove(probe)
        else:
            os.makedirs(local_path(uri), exist_ok=True)
    except OSError as error:
        raise _cannot_write(uri, error) from error


def remove(uri: str) -> None:
    """Removes a file or a folder with all it holds; nothing happens when there is none.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        (remote if is_remote(uri) else local).remove(uri)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be removed ({error.strerror or error}).") from error


def _cannot_write(uri: str, error: OSError) -> OutputError:
    cause = error.strerror or str(error)
    cure = "check the bucket and what your credentials allow" if is_remote(uri) else "free or unlock the place"
    return OutputError(f"{uri}: cannot be written ({cause}). What was finished is kept; {cure} and run again.")
