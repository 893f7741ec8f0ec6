"""Files on this machine's disks: read whole, written beside and renamed, listed once whatever links lead to them."""

from __future__ import annotations

import errno
import filecmp
import heapq
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import cast

from cropreg import faults
from cropreg.errors import InputError
from cropreg.storage.entry import Entry
from cropreg.storage.uris import local_path, path_to_uri

TEMPORARY_PREFIX = ".tmp-"  # readers of datasets skip names that start with a dot; a suffix would be read as data


def read(uri: str) -> bytes:
    """Reads a file, and refuses what is none."""
    path = local_path(uri)
    if not os.path.isfile(path):
        if os.path.exists(path):  # a pipe would block for ever, a folder raises something less clear
            raise IsADirectoryError(f"{uri} is not a regular file")
        raise FileNotFoundError(f"{uri} does not exist")
    with open(path, "rb") as f:
        return f.read()


def mapped(uri: str) -> bytes:
    """A file's bytes without reading them: what is looked at is fetched then.  An empty file is read."""
    path = local_path(uri)
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        return read(uri)
    with open(path, "rb") as f:
        return cast(bytes, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))  # reads like bytes


def filled(uri: str, fill: Callable[[str], None], *, overwrite: bool) -> bool:
    """Lets ``fill`` write a file beside, given its path, and puts it in place; returns whether it is there now.

    Not so when ``overwrite`` is off and another file has its name; one that is the same may stay.
    """
    path = local_path(uri)
    temporary = _new_beside(path)
    try:
        faults.trip("write", path)
        fill(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return filecmp.cmp(temporary, path, shallow=False)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    _sync_folder(os.path.dirname(path))
    return True


def replace(uri: str, data: bytes) -> None:
    """Puts a whole file in place of the one that may be there."""
    path = local_path(uri)
    temporary = _write_beside(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def create(uri: str, data: bytes) -> bool:
    """Writes a whole file if its name is free; returns whether it was.  Of two processes at once only one succeeds."""
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


def remove(uri: str) -> None:
    """Removes a file or a folder with all it holds; nothing happens when there is none."""
    path = local_path(uri)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def list_below(folder: str, suffixes: tuple[str, ...] | None, skip: tuple[str, ...]) -> Iterator[Entry]:
    """Lists the files below a folder without entering those in ``skip`` (URIs of folders of this machine)."""
    root = local_path(folder)
    if not os.path.isdir(root):
        raise InputError(f"{folder}: there is no such folder. Check the path, and that this machine can see it.")
    seen = {_identity(path) for path in map(local_path, skip) if os.path.isdir(path)}
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


def _write_beside(path: str, data: bytes) -> str:
    """Writes ``data`` to a new hidden file in the folder of ``path``, synced to disk; returns its path."""
    temporary = _new_beside(path)
    try:
        faults.trip("write", path)
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return temporary


def _new_beside(path: str) -> str:
    """The path of a hidden file that is not there yet, in the folder of ``path``, which is made."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself must survive a power cut
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot; the file is whole all the same
            raise
    finally:
        os.close(descriptor)
