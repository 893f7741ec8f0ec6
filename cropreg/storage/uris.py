"""Names of files: absolute local paths, and strings with a scheme.  Nothing here touches a disk or a network."""

from __future__ import annotations

import os
import posixpath
from urllib.parse import quote, unquote_to_bytes

from cropreg.errors import UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


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
