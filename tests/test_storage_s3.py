"""Files on an object store: the same laws as on a disk, against a server on this machine."""

import contextlib
import http.client
import threading
from collections.abc import Iterator

import pytest

from cropreg import schema, storage
from cropreg.errors import InputError, OutputError
from cropreg.schema import BoxDataset, Part, commit_manifest, parquet_bytes
from cropreg.storage import remote

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:(moto|botocore|werkzeug|flask).*"), pytest.mark.long]


@pytest.mark.parametrize("name", ["a.jpg", "folder/a.jpg", "a b.jpg", "ü#?&+%20.jpg", "=cmd.jpg", "🐈.jpg", "[x]*.jpg"])
def test_object_is_written_found_and_read_whatever_its_key(bucket, name):
    uri = storage.join(bucket, "top", name)
    storage.write_whole(uri, b"content")
    assert storage.read_bytes(uri) == b"content"
    assert storage.absolute(uri) == uri
    [entry] = storage.list_files(storage.join(bucket, "top"))
    assert (entry.relative, entry.uri, entry.size) == (name, uri, 7)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_object_is_replaced_when_written_again(bucket):
    uri = storage.join(bucket, "a.json")
    storage.write_whole(uri, b"old")
    storage.write_whole(uri, b"new")
    assert storage.read_bytes(uri) == b"new"


def test_large_object_comes_back_whole(bucket):
    data = bytes(range(256)) * (6 * 2**20 // 256) + b"end"  # more than one part of an upload
    storage.write_whole(storage.join(bucket, "large.bin"), data)
    assert storage.read_bytes(storage.join(bucket, "large.bin")) == data


def test_object_is_kept_when_created_again(bucket):
    uri = storage.join(bucket, "a.json")
    assert storage.create_exclusive(uri, b"old")
    assert not storage.create_exclusive(uri, b"new")
    with pytest.raises(OutputError) as caught:
        storage.write_whole(uri, b"new", overwrite=False)
    assert str(caught.value) == f"{uri} exists already and is kept. Use --overwrite or another output folder."
    assert storage.read_bytes(uri) == b"old"


def test_missing_object_is_said_to_be_missing(bucket):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(bucket, "none.jpg"))


def test_keys_below_make_a_folder(bucket):
    storage.write_whole(storage.join(bucket, "a/b/c.jpg"), b"1")
    assert storage.is_folder(bucket)
    assert storage.is_folder(storage.join(bucket, "a/b"))
    assert storage.exists(storage.join(bucket, "a"))
    assert not storage.is_folder(storage.join(bucket, "a/b/c.jpg"))
    assert not storage.exists(storage.join(bucket, "a/b/c"))


def test_listing_leaves_out_hidden_skipped_and_other_endings(bucket):
    for key in (
        "in/a.JPG",
        "in/.hidden.jpg",
        "in/.tmp/a.jpg",
        "in/deep/b.png",
        "in/skip/c.jpg",
        "in/skipped/d.jpg",
        "in/e.txt",
        "f.jpg",
    ):
        storage.write_whole(storage.join(bucket, key), b"1")
    found = storage.list_files(storage.join(bucket, "in"), (".jpg", ".png"), skip=(storage.join(bucket, "in/skip"), "/in/deep"))
    assert sorted(entry.relative for entry in found) == ["a.JPG", "deep/b.png", "skipped/d.jpg"]


def test_whole_bucket_is_listed_relative_to_its_root(bucket):
    storage.write_whole(storage.join(bucket, "a/b.jpg"), b"1")
    assert [(e.relative, e.uri) for e in storage.list_files(bucket)] == [("a/b.jpg", f"{bucket}/a/b.jpg")]


def test_removing_takes_a_tree_and_leaves_its_neighbours(bucket):
    for key in ("out/parts/1", "out/parts/deep/2", "out/parts-kept", "out/table"):
        storage.write_whole(storage.join(bucket, key), b"1")
    storage.remove(storage.join(bucket, "out/parts"))
    storage.remove(storage.join(bucket, "out/none"))
    assert sorted(e.relative for e in storage.list_files(bucket)) == ["out/parts-kept", "out/table"]
    assert not storage.exists(storage.join(bucket, "out/parts"))


def test_missing_folder_is_refused_when_listed(bucket):
    with pytest.raises(InputError) as caught:
        list(storage.list_files(f"{bucket}/none"))
    assert str(caught.value) == f"{bucket}/none: there is no such folder. Check the path, and that this machine can see it."


def test_missing_bucket_is_refused_when_listed(store):
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/a: cannot be reached \(.*NO_SUCH_BUCKET"):
        list(storage.list_files("s3://no-such-bucket/a"))


def test_writing_to_a_missing_bucket_is_refused(store):
    for write in (storage.write_whole, storage.create_exclusive):
        with pytest.raises(OutputError, match="s3://no-such-bucket/a: cannot be written"):
            write("s3://no-such-bucket/a", b"1")


def test_making_a_folder_tries_whether_it_can_be_written_and_leaves_no_file(bucket):
    storage.make_folder(f"{bucket}/out")
    assert list(storage.list_files(bucket)) == []


def test_output_in_a_missing_bucket_is_refused_when_its_folder_is_made(store):
    with pytest.raises(
        OutputError, match=r"/out: cannot be written \(.*NO_SUCH_BUCKET.*check the bucket and what your credentials"
    ):
        storage.make_folder("s3://no-such-bucket/out")


@pytest.fixture
def keys_of_nobody(store: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server looks at credentials from now on, and ours are not among those that it knows."""

    def look(after_requests: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", store)
        connection.request("POST", "/moto-api/reset-auth", str(after_requests))
        assert connection.getresponse().status == 200
        connection.close()

    look(0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    remote._connect.cache_clear()
    yield
    monkeypatch.undo()
    look(10**9)
    remote._connect.cache_clear()


def test_missing_right_is_told_before_work_starts(bucket, keys_of_nobody):
    with pytest.raises(
        OutputError, match=rf"^{bucket}/out: cannot be written \(.*(ACCESS_DENIED|INVALID_ACCESS_KEY|HTTP status 403)"
    ):
        storage.make_folder(f"{bucket}/out")
    with pytest.raises(InputError, match=rf"^{bucket}/in: cannot be reached \(.*Check the address and your credentials"):
        list(storage.list_files(f"{bucket}/in"))


@pytest.mark.parametrize("verb", ["match", "predict"])
def test_verb_ends_before_it_computes_when_its_bucket_is_missing(bucket, tmp_path, monkeypatch, capsys, verb):
    from cropreg import cli
    from cropreg.pipelines import match, predict

    monkeypatch.setattr(match, "_build", lambda *_: pytest.fail("work has started"))
    monkeypatch.setattr(predict, "_predict", lambda *_: pytest.fail("work has started"))
    monkeypatch.setattr(predict, "_model_id", lambda *_: "a model")
    for name in ("originals/a.jpg", "crops/a.jpg"):
        storage.write_whole(storage.join(bucket, name), b"1")
    missing = "s3://no-such-bucket/x"
    places = {"match": [f"{bucket}/originals", f"{bucket}/crops"], "predict": [f"{bucket}/run", f"{bucket}/originals"]}[verb]
    assert cli.run([verb, *places, "--out", missing]) == 4
    assert f"{missing}: cannot be written (" in capsys.readouterr().err
    assert cli.run([verb, places[0], missing, "--out", f"{bucket}/out"]) == 3
    assert f"{missing}: cannot be reached (" in capsys.readouterr().err


def test_store_that_does_not_answer_is_named_with_what_to_check(store, monkeypatch):
    monkeypatch.setattr(remote, "filesystem", lambda uri: (Silent(), "bucket/a"))
    for ask in (storage.exists, storage.is_folder, lambda uri: list(storage.list_files(uri))):
        with pytest.raises(InputError) as caught:
            ask("s3://bucket/a")
        assert str(caught.value) == ("s3://bucket/a: cannot be reached (access denied). Check the address and your credentials.")


class Silent:
    """A file system that answers nothing."""

    def get_file_info(self, _):
        raise OSError("access denied")


def test_reading_is_tried_again_when_the_connection_breaks(bucket, monkeypatch):
    uri = storage.join(bucket, "a.jpg")
    storage.write_whole(uri, b"1")
    system, path = storage.filesystem(uri)
    tries = []

    class Flaky:
        def open_input_file(self, name):
            tries.append(name)
            if len(tries) < 3:
                raise OSError("connection reset")
            return system.open_input_file(name)

    monkeypatch.setattr(remote, "filesystem", lambda _: (Flaky(), path))
    assert storage.read_bytes(uri) == b"1"
    assert len(tries) == 3


def test_one_connection_serves_a_bucket_and_all_threads(bucket):
    storage.write_whole(storage.join(bucket, "a"), b"1")
    assert storage.filesystem(f"{bucket}/a")[0] is storage.filesystem(f"{bucket}/b c/d")[0]
    read: list[bytes] = []
    threads = [threading.Thread(target=lambda: read.append(storage.read_bytes(f"{bucket}/a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [b"1"] * 4


def test_box_dataset_comes_back_from_an_object_store(bucket):
    uri = storage.join(bucket, "boxes")
    with pytest.raises(InputError, match="no box dataset here"):
        BoxDataset.open(uri)
    rows = [{"pair_id": "b", "verdict": "found", "x1": 1.5}, {"pair_id": "a", "verdict": "flat"}]
    data = parquet_bytes(rows, schema.PAIRS)
    part = Part.of("pairs", "pairs/part-1.parquet", 2, data)
    storage.write_whole(storage.join(uri, part.file), data)
    facts = {"config": {"split": [1, 0, 0, 0]}, "counts": {"found": 1, "flat": 1}, "version": "0"}
    assert commit_manifest(uri, [part], parent=0, **facts) == 1
    assert commit_manifest(uri, [], parent=0, **facts) is None, "the number is taken"
    dataset = BoxDataset.open(uri + "/")
    assert dataset.number == 1
    assert dataset.parts("pairs") == [part]
    assert dataset.pairs(["pair_id", "x1"]).to_pylist() == [{"pair_id": "a", "x1": None}, {"pair_id": "b", "x1": 1.5}]


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_save_of_a_checkpoint_that_is_cut_short_leaves_the_one_before_it(bucket, monkeypatch, writes):
    checkpoint = pytest.importorskip("cropreg.checkpoint")
    from test_checkpoint import info

    from cropreg.model import Architecture, CropRegressor

    model, uri = CropRegressor(Architecture(image_side=64), (0.1, 0.1, 0.1, 0.1)), f"{bucket}/run/checkpoints/last"
    assert not checkpoint.is_there(uri)
    checkpoint.save(uri, model, info(3), {"epoch": 3})
    left, put = iter(range(writes)), remote.replace

    def until_killed(uri: str, data: bytes) -> None:
        next(left)  # StopIteration: the process is gone
        put(uri, data)

    monkeypatch.setattr(remote, "replace", until_killed)
    whole = writes >= 3
    with contextlib.nullcontext() if whole else pytest.raises(StopIteration):
        checkpoint.save(uri, model, info(4), {"epoch": 4})
    monkeypatch.undo()
    epoch = 4 if whole else 3
    assert checkpoint.load(uri)[1].epoch == epoch
    assert checkpoint.load_state(uri, checkpoint.load_info(uri)) == {"epoch": epoch}
    checkpoint.save(uri, model, info(5), {"epoch": 5})
    assert checkpoint.load(uri)[1].epoch == 5
    assert not storage.exists(f"{bucket}/run/checkpoints/.last-old")
