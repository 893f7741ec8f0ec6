"""Files by URI: local paths and ``s3://``, ``gs://``, ``abfs://`` objects through :mod:`pyarrow.fs`, always read and written whole.

A URI here is an absolute local path, or a string with a scheme.  A local name that is not UTF-8 becomes a percent-encoded ``file://``
URI, because Arrow strings and JSON cannot hold it otherwise; :func:`local_path` turns it back.  Keys of an object store stand as they
are, never encoded.  Credentials, region and endpoint come from where its own tools take them (``AWS_ENDPOINT_URL`` and the like).
"""

from cropreg.storage.entry import Entry
from cropreg.storage.files import (
    copy_file,
    create_exclusive,
    exists,
    fill_file,
    is_folder,
    list_files,
    make_folder,
    map_bytes,
    read_bytes,
    remove,
    write_whole,
)
from cropreg.storage.lease import Lease, held, refuse_if_held
from cropreg.storage.local import TEMPORARY_PREFIX
from cropreg.storage.remote import filesystem
from cropreg.storage.uris import REMOTE_SCHEMES, absolute, as_text, is_remote, join, local_path, name_of, path_to_uri

__all__ = [
    "REMOTE_SCHEMES",
    "TEMPORARY_PREFIX",
    "Entry",
    "Lease",
    "absolute",
    "as_text",
    "copy_file",
    "create_exclusive",
    "exists",
    "filesystem",
    "fill_file",
    "held",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "local_path",
    "make_folder",
    "map_bytes",
    "name_of",
    "path_to_uri",
    "read_bytes",
    "refuse_if_held",
    "remove",
    "write_whole",
]
