"""Local files by URI: any name works, nothing is ever half there, and nothing blocks."""

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg import storage
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.images import IMAGE_SUFFIXES

ODD_NAMES = [
    "with space.jpg",
    "new\nline.jpg",
    "tab\t.jpg",
    "quo'te\".jpg",
    "<b>.jpg",
    "=cmd.jpg",
    "-rf.jpg",
    "[x]*?.jpg",
    "50%25.jpg",
    "a#b?c.jpg",
    "back\\slash.jpg",
    "🐈.jpg",
    "é.jpg",  # one character
    "é.jpg",  # two characters: another file
    "a" * 251 + ".jpg",
    os.fsdecode(b"\xff\xfe.jpg"),
    os.fsdecode(b"gr\xfc\xdfe 1.jpg"),
]
file_names = st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 0x2F} & set(b) and b[:1] != b".").map(os.fsdecode)


def leftovers(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(os.listdir(folder))


def failing(number: int):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


# names


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_file_is_found_and_read_whatever_its_name(name, tmp_path):
    content = os.fsencode(name) * 2
    (tmp_path / "folder").mkdir()
    with open(os.fsencode(tmp_path / "folder") + b"/" + os.fsencode(name), "wb") as f:
        f.write(content)
    [entry] = storage.list_files(str(tmp_path))
    assert entry.relative == f"folder/{name}"
    assert entry.size == len(content)
    entry.uri.encode("utf-8")  # fits into any table
    assert storage.read_bytes(entry.uri) == content
    assert storage.join(str(tmp_path), entry.relative) == entry.uri == storage.absolute(entry.uri)
    assert storage.exists(entry.uri)


def test_composed_and_decomposed_names_are_two_files(tmp_path):
    for name in ODD_NAMES:
        storage.write_whole(storage.join(str(tmp_path), name), b"")
    assert {entry.relative for entry in storage.list_files(str(tmp_path))} == set(ODD_NAMES)


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_file_is_written_whatever_its_name(name, tmp_path):
    uri = storage.join(str(tmp_path), "new", name)
    storage.write_whole(uri, b"1")
    storage.write_whole(uri, b"2")
    assert not storage.create_exclusive(uri, b"3")
    assert storage.read_bytes(uri) == b"2"
    assert leftovers(tmp_path / "new") == [name]
    storage.remove(uri)
    assert leftovers(tmp_path / "new") == []


@given(st.lists(file_names, min_size=1, max_size=4))
def test_path_comes_back_from_its_uri(names):
    path = "/" + "/".join(names)
    uri = storage.path_to_uri(path)
    uri.encode("utf-8")
    assert storage.local_path(uri) == path
    assert storage.join(storage.path_to_uri("/"), *names) == uri
    assert storage.path_to_uri(storage.local_path(uri)) == uri


@given(file_names)
def test_name_as_text_is_text_and_stays_when_it_is_text_already(name):
    text = storage.as_text(name)
    text.encode("utf-8")
    assert storage.as_text(text) == text


# absolute


def test_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute("a/../b/") == str(tmp_path / "b")
    assert storage.absolute(Path("b")) == str(tmp_path / "b")
    assert storage.absolute("~/b") == "/home/somebody/b"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket//a/ b%20", "s3://bucket/a/ b%20"),
        ("gs://bucket", "gs://bucket"),
        ("gcs://bucket/", "gcs://bucket"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("file:///a/b%20c", "/a/b c"),
        ("file:///a/%FF", "file:///a/%FF"),
    ],
)
def test_known_scheme_is_kept_and_tidied(uri, expected):
    assert storage.absolute(uri) == expected
    assert storage.absolute(expected) == expected


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://host/a", "http://host/a: the scheme http:// is not known. Use a local path, s3://, gs:// or abfs://."),
        ("S3://bucket/a", "S3://bucket/a: the scheme S3:// is not known. Use a local path, s3://, gs:// or abfs://."),
        ("s3://", "s3://: no bucket is named. Write s3://BUCKET/FOLDER."),
        ("file://a/b", "file://a/b: a file:// URI needs an absolute path, with three slashes: file:///folder."),
    ],
)
def test_unknown_place_is_refused_with_what_to_write(uri, message):
    with pytest.raises(UsageError) as caught:
        storage.absolute(uri)
    assert str(caught.value) == message


def test_remote_uri_has_no_local_path():
    with pytest.raises(ValueError, match="s3://bucket/a is not a local file"):
        storage.local_path("s3://bucket/a")


def test_container_without_account_is_refused():
    with pytest.raises(UsageError, match=r"abfs://box: .*account name"):
        storage.filesystem("abfs://box/a")


def test_name_that_is_not_utf8_is_percent_encoded_when_it_goes_to_an_object_store():
    assert storage.join("s3://bucket", os.fsdecode(b"a/\xff.jpg")) == "s3://bucket/a/%FF.jpg"


# reading


def test_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        storage.read_bytes(str(tmp_path / "none.jpg"))


def test_broken_and_circular_links_are_listed_and_fail_where_they_are_read(tmp_path):
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "good.jpg").write_bytes(b"1")
    entries = {entry.relative: entry for entry in storage.list_files(str(tmp_path), IMAGE_SUFFIXES)}
    assert set(entries) == {"broken.jpg", "circle.jpg", "good.jpg"}
    for name in ("broken.jpg", "circle.jpg"):
        assert entries[name].size == -1
        with pytest.raises(FileNotFoundError, match="does not exist"):
            storage.read_bytes(entries[name].uri)


@pytest.mark.timeout(10)
def test_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    [entry] = storage.list_files(str(tmp_path), IMAGE_SUFFIXES)
    with pytest.raises(OSError, match=r"pipe\.jpg is not a regular file"):
        storage.read_bytes(entry.uri)


def test_folder_is_refused_when_read_as_a_file(tmp_path):
    with pytest.raises(OSError, match="is not a regular file"):
        storage.read_bytes(str(tmp_path))


# listing


def names(folder: Path, *args: object, **kwargs: object) -> list[str]:
    return sorted(entry.relative for entry in storage.list_files(str(folder), *args, **kwargs))


def touch(folder: Path, *relatives: str) -> None:
    for relative in relatives:
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(b"1")


def test_folder_called_like_a_picture_is_entered(tmp_path):
    touch(tmp_path, "album.jpg/inside.jpg")
    assert names(tmp_path, IMAGE_SUFFIXES) == ["album.jpg/inside.jpg"]


def test_only_wanted_endings_are_listed_in_any_case(tmp_path):
    touch(tmp_path, "a.jpg", "b.JPG", "c.Png", "d.txt", "jpg", "e.jpg.bak")
    assert names(tmp_path, (".jpg", ".png")) == ["a.jpg", "b.JPG", "c.Png"]
    assert len(names(tmp_path)) == 6


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path, ".hidden.jpg", ".thumbs/a.jpg", "seen/.b.jpg", "seen/c.jpg")
    assert names(tmp_path) == ["seen/c.jpg"]


def test_hidden_folder_is_listed_when_it_is_asked_for(tmp_path):
    touch(tmp_path, ".cache/a.jpg")
    assert names(tmp_path / ".cache") == ["a.jpg"]


def test_skipped_folders_are_not_entered_by_whatever_name(tmp_path):
    touch(tmp_path, "keep/a.jpg", "skip/b.jpg", "skipped/c.jpg")
    (tmp_path / "another").symlink_to(tmp_path / "skip")
    skip = (str(tmp_path / "keep/../skip"), str(tmp_path / "not there"), "s3://bucket/elsewhere")
    assert names(tmp_path, skip=skip) == ["keep/a.jpg", "skipped/c.jpg"]


@pytest.mark.timeout(10)
def test_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a/b/c.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert names(tmp_path, IMAGE_SUFFIXES) == ["a/b/c.jpg"]


def test_folder_is_listed_once_by_its_own_name_whatever_order_the_disk_keeps(tmp_path, monkeypatch):
    touch(tmp_path, "in/real/a.jpg", "out/b.jpg", "out/deep/c.jpg")
    for link in ("0", "z"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "in/real")
    (tmp_path / "in/y2").symlink_to(tmp_path / "out")
    (tmp_path / "in/y1").symlink_to(tmp_path / "out/deep")
    expected = ["real/a.jpg", "y1/c.jpg", "y2/b.jpg"]
    assert names(tmp_path / "in") == expected
    scan = os.scandir

    class Reversed:
        def __init__(self, path):
            self.items = sorted(scan(path), key=lambda item: item.name, reverse=True)

        def __enter__(self):
            return self.items

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(tmp_path / "in") == expected


def test_linked_file_is_listed_under_its_link_with_the_stamp_of_its_target(tmp_path):
    touch(tmp_path, "store/a.jpg", "view/b.jpg")
    (tmp_path / "view/a.jpg").symlink_to(tmp_path / "store/a.jpg")
    [linked] = [entry for entry in storage.list_files(str(tmp_path / "view")) if entry.relative == "a.jpg"]
    [target] = storage.list_files(str(tmp_path / "store"))
    assert linked.stamp == target.stamp
    assert storage.read_bytes(linked.uri) == b"1"


def test_stamp_changes_when_the_file_changes(tmp_path):
    touch(tmp_path, "a.jpg")
    [before] = storage.list_files(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"22")
    [after] = storage.list_files(str(tmp_path))
    assert before.stamp != after.stamp


def test_missing_folder_is_refused_when_listed(tmp_path):
    with pytest.raises(InputError) as caught:
        list(storage.list_files(str(tmp_path / "none")))
    assert str(caught.value) == f"{tmp_path}/none: there is no such folder. Check the path, and that this machine can see it."


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg")
    monkeypatch.setattr(os, "scandir", failing(errno.EACCES))
    with pytest.raises(InputError) as caught:
        list(storage.list_files(str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: this folder cannot be listed (Permission denied)."


# writing


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, number):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, failing(number))
    with pytest.raises(OutputError) as caught:
        storage.write_whole(str(path), b"new")
    assert str(caught.value) == (
        f"{path}: cannot be written ({os.strerror(number)}). What was finished is kept; free or unlock the place and run again."
    )
    assert leftovers(tmp_path) == ["a.json"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write_whole(str(tmp_path / "a.json"), b"new")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["link", "fsync"])
def test_failed_exclusive_write_leaves_nothing(tmp_path, monkeypatch, step):
    monkeypatch.setattr(os, step, failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left on device"):
        storage.create_exclusive(str(tmp_path / "a.json"), b"new")
    assert leftovers(tmp_path) == []


def test_file_in_the_making_is_hidden_from_listings(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append((len(leftovers(tmp_path)), names(tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    storage.write_whole(str(tmp_path / "a.json"), b"new")
    assert seen == [(1, [])]


def test_write_succeeds_when_the_disk_cannot_sync_folders(tmp_path, monkeypatch):
    sync = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    storage.write_whole(str(tmp_path / "a.json"), b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_write_is_refused_when_the_file_exists_and_overwrite_is_off(tmp_path):
    path = tmp_path / "a.json"
    storage.write_whole(str(path), b"old", overwrite=False)
    with pytest.raises(OutputError) as caught:
        storage.write_whole(str(path), b"new", overwrite=False)
    assert str(caught.value) == f"{path} exists already and is kept. Use --overwrite or another output folder."
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["a.json"]


@pytest.mark.parametrize("write", [storage.write_whole, storage.create_exclusive, lambda uri, data: storage.make_folder(uri)])
def test_write_below_a_file_is_refused(tmp_path, write):
    touch(tmp_path, "file")
    with pytest.raises(OutputError, match=r"file/a\.json: cannot be written"):
        write(str(tmp_path / "file/a.json"), b"")


def test_write_over_a_folder_is_refused_and_leaves_it(tmp_path):
    touch(tmp_path, "folder/a.jpg")
    with pytest.raises(OutputError, match="folder: cannot be written"):
        storage.write_whole(str(tmp_path / "folder"), b"")
    assert leftovers(tmp_path) == ["folder"]


def test_name_that_is_too_long_is_refused_when_written(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        storage.write_whole(str(tmp_path / ("a" * 256)), b"")
    assert leftovers(tmp_path) == []


def test_written_file_has_the_rights_of_any_new_file(tmp_path):
    touch(tmp_path, "plain")
    storage.write_whole(str(tmp_path / "whole"), b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_one_writer_wins_when_many_create_the_same_file_at_once(tmp_path):
    num_writers = 8
    barrier, won = threading.Barrier(num_writers), [False] * num_writers

    def write(i: int, name: str) -> None:
        barrier.wait()
        won[i] = storage.create_exclusive(str(tmp_path / name), b"%d" % i * 1000)

    for name in ("a", "b", "c"):
        threads = [threading.Thread(target=write, args=(i, name)) for i in range(num_writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == 1
        assert (tmp_path / name).read_bytes() == b"%d" % won.index(True) * 1000
    assert leftovers(tmp_path) == ["a", "b", "c"]


def test_readers_see_old_or_new_but_never_a_part_while_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.bin"
    contents = [bytes([i]) * 300_000 for i in range(2)]
    path.write_bytes(contents[0])
    done = threading.Event()

    def write() -> None:
        for i in range(20):
            storage.write_whole(str(path), contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert storage.read_bytes(str(path)) in contents
    writer.join()


# removing


def test_removing_takes_a_file_a_tree_or_nothing(tmp_path):
    touch(tmp_path, "file", "tree/a/b", "kept/c")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("file", "tree", "link", "none"):
        storage.remove(str(tmp_path / name))
    assert leftovers(tmp_path) == ["kept"]
    assert names(tmp_path) == ["kept/c"]


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "file")
    monkeypatch.setattr(os, "unlink", failing(errno.EBUSY))
    with pytest.raises(OutputError) as caught:
        storage.remove(str(tmp_path / "file"))
    assert str(caught.value) == f"{tmp_path}/file: cannot be removed (Device or resource busy)."
