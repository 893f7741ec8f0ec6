"""The files of a box dataset: only what the newest manifest lists exists, and it is what the manifest says."""

import csv
import io
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cropreg import schema, storage
from cropreg.errors import InputError
from cropreg.schema import (
    PAIRS,
    PROXIES,
    BoxDataset,
    Part,
    commit_manifest,
    csv_bytes,
    fingerprint,
    latest_manifest,
    parquet_bytes,
    plain_cell,
    proxies_bytes,
)

FACTS = {"config": {"split": [0.7, 0.1, 0.1, 0.1]}, "counts": {"found": 1}, "version": "0.1"}


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "boxes")


def put(uri: str, name: str, rows: list[dict[str, object]]) -> Part:
    """Writes a part of the pairs table."""
    data = parquet_bytes(rows, PAIRS)
    file = f"pairs/part-{name}.parquet"
    storage.write_whole(storage.join(uri, file), data)
    return Part.of("pairs", file, len(rows), data)


def row(pair_id: str, score: float = 0.5, **values: object) -> dict[str, object]:
    return {"pair_id": pair_id, "verdict": "found", "score": score, **values}


def commit(uri: str, *parts: Part, parent: int = 0) -> int | None:
    return commit_manifest(uri, parts, parent=parent, **FACTS)


# manifests


def test_manifests_are_numbered_and_the_highest_is_the_dataset(uri):
    first, second = put(uri, "1", [row("a")]), put(uri, "2", [row("b")])
    assert latest_manifest(uri) == 0
    assert commit(uri, first) == 1
    assert commit(uri, first, second, parent=1) == 2
    dataset = BoxDataset.open(uri)
    assert (dataset.number, latest_manifest(uri)) == (2, 2)
    assert dataset.manifest["parent"] == 1
    assert dataset.parts("pairs") == [first, second]
    assert dataset.pairs(["pair_id"]).to_pylist() == [{"pair_id": "a"}, {"pair_id": "b"}]


def test_pairs_whose_files_are_gone_no_longer_count(uri):
    part = put(uri, "1", [row("a"), row("b"), row("c")])
    assert commit_manifest(uri, [part], parent=0, removed=["b"], **FACTS) == 1
    dataset = BoxDataset.open(uri)
    assert dataset.pairs(["pair_id"])["pair_id"].to_pylist() == ["a", "c"]
    assert commit_manifest(uri, [part], parent=1, **FACTS) == 2
    back = BoxDataset.open(uri)
    assert back.pairs(["pair_id"]).num_rows == 3
    assert back.fingerprint != dataset.fingerprint


def test_highest_manifest_is_found_when_numbers_grow_longer(uri):
    for number in (9, 10, 999_999, 1_000_000):
        storage.write_whole(storage.join(uri, schema.manifest_file(number)), b"{}")
    assert latest_manifest(uri) == 1_000_000


def test_files_that_are_no_manifests_are_ignored(uri):
    commit(uri, put(uri, "1", [row("a")]))
    for name in (".tmp-000009.json", "000009.json.bak", "notes.json", "old/000009.json"):
        storage.write_whole(storage.join(uri, "manifests", name), b"{}")
    assert BoxDataset.open(uri).number == 1


def test_part_that_no_manifest_lists_does_not_exist(uri):
    listed = put(uri, "1", [row("a")])
    put(uri, "2", [row("b")])
    commit(uri, listed)
    assert BoxDataset.open(uri).pairs(["pair_id"]).to_pylist() == [{"pair_id": "a"}]


def test_manifest_is_written_once_when_two_runs_end_at_once(uri):
    parts = [put(uri, str(i), [row(str(i))]) for i in range(6)]
    barrier, numbers = threading.Barrier(len(parts)), []

    def run(part: Part) -> None:
        barrier.wait()
        numbers.append(commit(uri, part))

    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers, key=str) == [1, *[None] * 5]
    assert len(BoxDataset.open(uri).parts("pairs")) == 1


def test_manifest_says_who_wrote_what_and_how(uri):
    part = put(uri, "1", [row("a")])
    commit(uri, part)
    manifest = json.loads(storage.read_bytes(f"{uri}/manifests/000001.json"))
    assert set(manifest) == {
        *("schema_version", "cropreg_version", "created_at", "config", "fingerprint", "counts", "parent", "parts", "removed"),
    }
    assert manifest["parent"] is None
    assert manifest["fingerprint"] == fingerprint(FACTS["config"])
    assert manifest["parts"] == [
        {"table": "pairs", "file": "pairs/part-1.parquet", "rows": 1, "bytes": part.bytes, "sha256": part.sha256},
    ]


def test_missing_dataset_is_refused_with_the_command_that_makes_one(uri):
    with pytest.raises(InputError) as caught:
        BoxDataset.open(uri)
    assert str(caught.value) == (
        f"{uri}: no box dataset here (no manifests/*.json). Make one: cropreg match ORIGINALS CROPS --out {uri}"
    )


def test_dataset_of_another_schema_version_is_refused_with_the_version_that_wrote_it(uri):
    newer = {"schema_version": schema.SCHEMA_VERSION + 1, "cropreg_version": "9.9", "parts": []}
    storage.write_whole(f"{uri}/manifests/000001.json", json.dumps(newer).encode())
    with pytest.raises(InputError) as caught:
        BoxDataset.open(uri)
    assert str(caught.value) == (
        f"{uri}: written with schema version 2, this cropreg reads version 1. "
        "Use the cropreg that wrote it (9.9) or match again into another folder."
    )


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b'"text"', b'{"schema_version": 1}'])
def test_damaged_manifest_is_refused(uri, data):
    storage.write_whole(f"{uri}/manifests/000001.json", data)
    with pytest.raises(InputError, match=r"manifests/000001\.json: this manifest is damaged \(.*Restore it, or build"):
        BoxDataset.open(uri)


# pairs


def test_newest_row_of_a_pair_wins(uri):
    old = put(uri, "z", [row("a", 0.1), row("b", 0.1), row("c", 0.1)])
    new = put(uri, "m", [row("b", 0.2), row("d", 0.2)])
    newest = put(uri, "a", [row("b", 0.3), row("c", 0.3)])
    commit(uri, old, new, newest)
    table = BoxDataset.open(uri).pairs(["pair_id", "score"])
    assert table["pair_id"].to_pylist() == ["a", "b", "c", "d"]
    assert table["score"].to_pylist() == pytest.approx([0.1, 0.3, 0.3, 0.2])


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6, unique=True), min_size=1, max_size=4))
def test_pairs_are_those_of_a_dictionary_filled_in_the_order_of_the_parts(parts):
    parts_bytes = {f"p{i}": parquet_bytes([row(name, i) for name in names], PAIRS) for i, names in enumerate(parts)}
    listed = [vars_of(Part.of("pairs", file, 0, data)) for file, data in parts_bytes.items()]

    class InMemory(BoxDataset):
        def read_part(self, part: Part) -> bytes:
            return parts_bytes[part.file]

    table = InMemory("/", 1, {"parts": listed}).pairs(["pair_id", "score"])
    expected = {name: float(i) for i, names in enumerate(parts) for name in names}
    assert list(zip(table["pair_id"].to_pylist(), table["score"].to_pylist(), strict=True)) == sorted(expected.items())


def vars_of(part: Part) -> dict[str, object]:
    return {name: getattr(part, name) for name in Part.__slots__}


def test_pairs_have_the_columns_of_the_schema_unless_fewer_are_asked_for(uri):
    commit(uri, put(uri, "1", [row("a", x1=1.5, original_w=7, orientation=6)]))
    dataset = BoxDataset.open(uri)
    assert dataset.pairs().schema.names == PAIRS.names
    assert dataset.pairs(["verdict", "x1"]).to_pylist() == [{"verdict": "found", "x1": 1.5}]
    assert dataset.pairs().schema.field("original_w").type == pa.int32()


def test_dataset_without_parts_has_no_pairs(uri):
    commit(uri)
    assert BoxDataset.open(uri).pairs().num_rows == 0
    assert BoxDataset.open(uri).pairs(["verdict"]).schema.names == ["verdict"]


def test_missing_part_is_named(uri):
    part = put(uri, "1", [row("a")])
    commit(uri, part)
    storage.remove(f"{uri}/{part.file}")
    with pytest.raises(InputError) as caught:
        BoxDataset.open(uri).pairs()
    assert str(caught.value) == (
        f"{uri}/{part.file}: the manifest lists this file but it cannot be read ({uri}/{part.file} does not exist). "
        "Restore it, or match again."
    )


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:], lambda d: b""])
def test_part_with_other_bytes_than_listed_is_refused(uri, damage):
    part = put(uri, "1", [row("a")])
    commit(uri, part)
    storage.write_whole(f"{uri}/{part.file}", damage(storage.read_bytes(f"{uri}/{part.file}")))
    with pytest.raises(InputError) as caught:
        BoxDataset.open(uri).pairs()
    assert str(caught.value) == (
        f"{uri}/{part.file}: the file is not the one the manifest lists (checksum). Restore it, or match again."
    )


def test_fingerprint_of_a_dataset_is_that_of_its_parts(uri, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    one, two = put(uri, "1", [row("a")]), put(uri, "2", [row("b")])
    commit(uri, one, two)
    for name, rows in (("1", [row("a")]), ("2", [row("b")])):
        put(elsewhere, name, rows)
    commit(elsewhere, one, two)
    assert BoxDataset.open(uri).fingerprint == BoxDataset.open(elsewhere).fingerprint
    commit(uri, one, parent=1)
    assert BoxDataset.open(uri).fingerprint != BoxDataset.open(elsewhere).fingerprint


# encodings

words = st.text("aé\n", max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(words, values, max_size=4))
def test_fingerprint_does_not_depend_on_the_order_of_keys_nor_on_a_way_through_json(settings):
    backwards = dict(reversed(settings.items()))
    assert fingerprint(settings) == fingerprint(backwards) == fingerprint(json.loads(json.dumps(settings)))


def test_fingerprint_changes_when_a_value_does():
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {}, {"a": None})}) == 7


def test_same_rows_give_the_same_bytes():
    rows = [row(str(i), i / 10) for i in range(10)]
    assert parquet_bytes(rows, PAIRS) == parquet_bytes(iter(rows), PAIRS)


def test_parquet_file_knows_its_schema_version():
    stored = pq.read_schema(io.BytesIO(parquet_bytes([row("a")], PAIRS)))
    assert stored.metadata[b"cropreg_schema_version"] == str(schema.SCHEMA_VERSION).encode()
    assert stored.equals(PAIRS)


def test_every_column_of_the_contract_is_in_the_table_with_its_type():
    contract = {
        "string": "pair_id original_uri crop_uri original_id crop_id group split method verdict reason",
        "int32": "original_w original_h crop_w crop_h",
        "int8": "orientation",
        "double": "x1 y1 x2 y2",
        "float": "angle_deg scale score gap elapsed_ms",
    }
    assert {name: kind for kind, names in contract.items() for name in names.split()}.items() <= {
        field.name: str(field.type) for field in PAIRS
    }.items()


def test_proxies_are_read_from_a_memory_map_without_copying_their_neighbours(tmp_path):
    rows = [{"original_id": str(i), "proxy_w": i, "proxy_h": 1, "jpeg": bytes([i]) * 100_000} for i in range(50)]
    (tmp_path / "part.arrow").write_bytes(proxies_bytes(rows))
    with pa.memory_map(str(tmp_path / "part.arrow")) as source:
        before = pa.total_allocated_bytes()
        table = pa.ipc.open_file(source).read_all()
        picture = table.column("jpeg").chunk(0)[31].as_buffer()
        assert pa.total_allocated_bytes() - before < 10_000, "the pictures stay in the file"
        assert bytes(picture) == bytes([31]) * 100_000
        assert table.schema.equals(PROXIES)
        del picture, table


def test_no_proxies_are_a_file_too():
    assert pa.ipc.open_file(pa.BufferReader(proxies_bytes([]))).read_all().num_rows == 0


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_cell_that_looks_like_a_formula_is_made_plain(formula):
    data = csv_bytes([{"name": formula, "score": -1.5}], ["name", "score"])
    [cells] = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert cells["name"] == "'" + formula
    assert cells["score"] == "-1.5", "numbers stay numbers"


@given(st.text("a=', \"\n\r\té", max_size=6))
@example("a\rb")
def test_any_other_text_comes_back_from_csv(text):
    data = csv_bytes([{"name": text, "empty": None}], ["name", "empty"])
    [cells] = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert cells == {"name": plain_cell(text), "empty": ""}


def test_csv_has_the_columns_asked_for_in_their_order():
    assert csv_bytes([{"b": 1, "a": 2, "c": 3}], ["a", "b"]) == b"a,b\n2,1\n"
    assert csv_bytes([], ["a", "b"]) == b"a,b\n"
