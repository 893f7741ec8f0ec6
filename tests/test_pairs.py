"""Which crop belongs to which original: nothing is guessed, and nothing disappears."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropreg import pairs, storage
from cropreg.errors import InputError, UsageError
from cropreg.pairs import Pair, discover, find, from_table, pair_id

SCAN = "é"  # one character, and the same as two
SCAN_DECOMPOSED = "é"


def touch(folder: Path, *relatives: str) -> None:
    for relative in relatives:
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(relative.encode(errors="surrogateescape"))


@pytest.fixture
def folders(tmp_path):
    """Makes originals and crops of these names, and says which pairs are found: (original, crop) relative to their roots."""

    def make(originals: list[str], crops: list[str], **options: str) -> dict[tuple[str, str], str | None]:
        for name, files in (("originals", originals), ("crops", crops)):
            (tmp_path / name).mkdir(exist_ok=True)
            touch(tmp_path / name, *files)
        return relative(discover(str(tmp_path / "originals"), str(tmp_path / "crops"), **options), tmp_path)

    return make


def relative(found: list[Pair], root: Path) -> dict[tuple[str, str], str | None]:
    """Pairs as (original, crop) below their folders, with the reason why one is alone."""

    def below(uri: str | None) -> str:
        return "" if uri is None else os.path.relpath(storage.local_path(uri), root).partition("/")[2]

    assert len({p.pair_id for p in found}) == len(found)
    return {(below(p.original_uri), below(p.crop_uri)): p.reason for p in found}


def test_crop_is_paired_by_its_relative_path_without_the_ending(folders):
    assert folders(["2019/a.jpg", "2020/a.tif", "b.jpg"], ["2019/a.png", "2020/a.jpg", "b.jpeg"]) == {
        ("2019/a.jpg", "2019/a.png"): None,
        ("2020/a.tif", "2020/a.jpg"): None,
        ("b.jpg", "b.jpeg"): None,
    }


def test_case_of_letters_does_not_matter(folders):
    assert folders(["Trip/IMG_1.JPG", "STRASSE.jpg"], ["trip/img_1.png", "straße.png"]) == {
        ("Trip/IMG_1.JPG", "trip/img_1.png"): None,
        ("STRASSE.jpg", "straße.png"): None,
    }


@pytest.mark.parametrize(("original", "crop"), [(SCAN, SCAN_DECOMPOSED), (SCAN_DECOMPOSED, SCAN), (SCAN.upper(), SCAN_DECOMPOSED)])
def test_composed_and_decomposed_letters_are_the_same_name(folders, original, crop):
    assert folders([f"{original}.jpg"], [f"{crop}.png"]) == {(f"{original}.jpg", f"{crop}.png"): None}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1))
def test_name_means_the_same_in_any_case_and_composition(name):
    import unicodedata

    def key(text):
        return pairs._key(text + ".jpg")

    assert key(unicodedata.normalize("NFC", name)) == key(unicodedata.normalize("NFD", name)) == key(name)
    assert key(name.casefold()) == key(name)


def test_name_that_is_not_utf8_is_paired(folders):
    name = os.fsdecode(b"\xff")
    assert folders([f"{name}.jpg"], [f"{name}.png"]) == {(f"{name}.jpg", f"{name}.png"): None}


def test_original_is_paired_with_each_crop_of_its_name(folders):
    assert folders(["a.jpg"], ["a.png", "A.jpg"]) == {("a.jpg", "a.png"): None, ("a.jpg", "A.jpg"): None}


def test_file_without_counterpart_is_kept_with_the_reason(folders):
    assert folders(["a.jpg", "b.jpg"], ["b.jpg", "c.jpg"]) == {
        ("a.jpg", ""): "no crop has this name",
        ("b.jpg", "b.jpg"): None,
        ("", "c.jpg"): "no original has this name",
    }


def test_name_that_fits_two_originals_is_never_guessed(folders):
    alone = "2 originals have this name, so no crop can be given to it"
    assert folders(["a.jpg", "A.tif"], ["a.png", "a.jpg"]) == {
        ("", "a.png"): "the name fits 2 originals: A.tif and a.jpg",
        ("", "a.jpg"): "the name fits 2 originals: A.tif and a.jpg",
        ("a.jpg", ""): alone,
        ("A.tif", ""): alone,
    }


def test_every_reason_fits_into_a_table_when_names_are_not_utf8(folders):
    name = os.fsdecode(b"\xff")
    found = folders([f"{name}.jpg", f"{name}.tif"], [f"{name}.png"])
    assert found["", f"{name}.png"] == "the name fits 2 originals: %FF.jpg and %FF.tif"
    pa.array(list(found.values()), pa.string())


def test_several_crops_find_their_original_by_the_first_group(folders):
    assert folders(["2019/a.jpg", "b.jpg"], ["2019/A_crop1.png", "2019/a_crop2.png", "b.png"], pair_by=r"(.+)_crop\d+") == {
        ("2019/a.jpg", "2019/A_crop1.png"): None,
        ("2019/a.jpg", "2019/a_crop2.png"): None,
        ("b.jpg", "b.png"): None,
    }


def test_several_crops_find_their_original_by_the_group_named_key(folders):
    assert folders(["a.jpg"], ["001-a.png", "002-a.png"], pair_by=r"(\d+)-(?P<key>.+)") == {
        ("a.jpg", "001-a.png"): None,
        ("a.jpg", "002-a.png"): None,
    }


def test_dot_in_what_a_group_matches_is_no_ending(folders):
    assert folders(["a.v2.jpg", "a.jpg"], ["a.v2_crop1.png"], pair_by=r"(.+)_crop\d+")["a.v2.jpg", "a.v2_crop1.png"] is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".+_crop", "--pair-by '.+_crop' has no group. Bracket what names the original, for example '(.+)_crop[0-9]+'."),
        (r"(.+", "--pair-by '(.+' is no regular expression: missing ), unterminated subpattern at position 0."),
    ],
)
def test_pattern_that_names_nothing_is_refused(folders, pattern, message):
    with pytest.raises(UsageError) as caught:
        folders([], [], pair_by=pattern)
    assert str(caught.value) == message


def test_crops_may_lie_inside_the_originals(tmp_path):
    touch(tmp_path, "a.jpg", "2019/b.jpg", "crops/a.png", "crops/2019/b.png")
    found = discover(str(tmp_path), str(tmp_path / "crops"))
    assert sorted((p.original_uri, p.crop_uri) for p in found) == [
        (f"{tmp_path}/2019/b.jpg", f"{tmp_path}/crops/2019/b.png"),
        (f"{tmp_path}/a.jpg", f"{tmp_path}/crops/a.png"),
    ]


def test_originals_may_lie_inside_the_crops(tmp_path):
    touch(tmp_path, "a.png", "originals/a.jpg")
    [pair] = discover(str(tmp_path / "originals"), str(tmp_path))
    assert (pair.original_uri, pair.crop_uri) == (f"{tmp_path}/originals/a.jpg", f"{tmp_path}/a.png")


@pytest.mark.parametrize("where", ["originals", "crops"])
def test_what_lies_in_the_dataset_is_no_picture_of_the_folders(tmp_path, where):
    touch(tmp_path, "originals/a.jpg", "crops/a.png", f"{where}/boxes/explain/0123.png")
    folders = str(tmp_path / "originals"), str(tmp_path / "crops")
    [pair] = find(*folders, None, out=str(tmp_path / where / "boxes"))
    assert (pair.original_name, pair.crop_name) == ("a.jpg", "a.png")


def test_folders_may_lie_in_that_of_the_dataset(tmp_path):
    touch(tmp_path, "originals/a.jpg", "crops/a.png")
    for out in (tmp_path, tmp_path / "originals"):
        assert len(find(str(tmp_path / "originals"), str(tmp_path / "crops"), None, out=str(out))) == 1


def test_files_that_are_no_pictures_are_left_out(folders):
    assert folders(["a.jpg", "a.xmp", "Thumbs.db", ".a.jpg"], ["a.png", "notes.txt"]) == {("a.jpg", "a.png"): None}


def test_same_folder_twice_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        discover(str(tmp_path), str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: originals and crops are the same folder. Give two folders, or a table: --pairs FILE."


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="none: there is no such folder"):
        discover(str(tmp_path / "none"), str(tmp_path))


some_names = st.sets(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "x/", "X/", "x/y/"]),
        st.sampled_from(["a", "A", SCAN, SCAN_DECOMPOSED, "b.c", os.fsdecode(b"\xff")]),
        st.sampled_from(["", "_1", "_2"]),
        st.sampled_from([".jpg", ".PNG", ".tif"]),
    ),
    max_size=12,
)


@given(some_names, some_names, st.sampled_from([None, r"(.+)_\d"]))
def test_every_file_is_accounted_for_and_no_pair_is_guessed(originals, crops, pair_by):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for folder, files in (("o", originals), ("c", crops)):
            (root / folder).mkdir()
            touch(root / folder, *files)
        found = discover(f"{root}/o", f"{root}/c", pair_by=pair_by)
        rows = relative(found, root)
    seen_crops = Counter(crop for _, crop in rows if crop)
    seen_originals = Counter(original for original, _ in rows if original)
    assert seen_crops == Counter(crops), "each crop stands in exactly one row"
    assert set(seen_originals) == originals, "each original stands in a row"
    for (original, crop), reason in rows.items():
        assert (reason is None) == bool(original and crop)
        assert reason is None or seen_originals[original] <= 1, "an original is alone once, and then has no pair"
    assert [p.pair_id for p in found] == sorted(p.pair_id for p in found)


def test_names_of_pairs_do_not_depend_on_where_the_folders_are(tmp_path):
    files = ("a.jpg", "x/b.jpg", "c.jpg")
    ids = []
    for root in (tmp_path / "here", tmp_path / "far/away"):
        touch(root / "o", *files)
        touch(root / "c", *files[:2], "d.png")
        ids.append([p.pair_id for p in discover(f"{root}/o", f"{root}/c")])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 4


def test_name_of_a_pair_knows_its_sides_apart():
    assert (
        len({pair_id("a", "b"), pair_id("b", "a"), pair_id("ab", ""), pair_id("", "ab"), pair_id("a", ""), pair_id("", "a")}) == 6
    )


def test_stamp_changes_when_one_of_the_files_does(tmp_path):
    def stamp() -> str:
        [pair] = discover(f"{tmp_path}/o", f"{tmp_path}/c")
        return pair.stamp

    touch(tmp_path, "o/a.jpg", "c/a.jpg")
    stamps = [stamp(), stamp()]
    for name in ("o/a.jpg", "c/a.jpg"):
        (tmp_path / name).write_bytes(b"more than before")
        stamps.append(stamp())
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 3


# tables

ROWS = [("a.jpg", "crops/a.png"), ("a.jpg", 'crops/new\nline, "quoted".png'), ("deep/ü b.jpg", "=cmd.png")]


def as_csv(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str, str] = ("original", "note", "crop")) -> str:
    import csv

    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerows([columns, *((o, f"note {i}", c) for i, (o, c) in enumerate(rows))])
    return str(path)


def as_parquet(path: Path, rows: list[tuple[str, str]], columns: tuple[str, str, str] = ("original", "note", "crop")) -> str:
    data = ([o or None for o, _ in rows], list(range(len(rows))), [c or None for _, c in rows])
    pq.write_table(pa.table(dict(zip(columns, data, strict=True))), path)
    return str(path)


both_kinds = pytest.mark.parametrize("write", [as_csv, as_parquet])


@both_kinds
def test_table_is_read_relative_to_its_own_folder_and_other_columns_are_ignored(tmp_path, write):
    found = from_table(write(tmp_path / "pairs.table", ROWS))
    assert {(p.original_uri, p.crop_uri) for p in found} == {(f"{tmp_path}/{o}", f"{tmp_path}/{c}") for o, c in ROWS}
    assert {p.pair_id for p in found} == {pair_id(o, c) for o, c in ROWS}
    assert all(p.reason is None and p.stamp == "missing/missing" for p in found)


@both_kinds
def test_paths_in_a_table_may_be_absolute_or_uris_or_lead_upwards(tmp_path, write):
    rows = [("/far/a.jpg", "s3://bucket/a b.png"), ("file:///far/%FF.jpg", "../up/./b.png"), ("file:///far/c%20d.jpg", "c.png")]
    (tmp_path / "in").mkdir()
    found = from_table(write(tmp_path / "in/pairs", rows))
    assert {(p.original_uri, p.crop_uri) for p in found} == {
        ("/far/a.jpg", "s3://bucket/a b.png"),
        ("file:///far/%FF.jpg", f"{tmp_path}/up/b.png"),
        ("/far/c d.jpg", f"{tmp_path}/in/c.png"),
    }


@both_kinds
def test_row_named_twice_counts_once(tmp_path, write):
    assert from_table(write(tmp_path / "pairs", [*ROWS, *ROWS[::-1]])) == from_table(write(tmp_path / "pairs", ROWS))


@both_kinds
def test_row_with_one_side_is_kept_as_unpaired_and_one_without_is_dropped(tmp_path, write):
    found = from_table(write(tmp_path / "pairs", [("a.jpg", ""), ("", "b.png"), ("", "")]))
    assert {(p.original_uri, p.crop_uri, p.reason) for p in found} == {
        (f"{tmp_path}/a.jpg", None, "the table names no crop for it"),
        (None, f"{tmp_path}/b.png", "the table names no original for it"),
    }


@both_kinds
def test_table_without_one_of_the_columns_is_refused(tmp_path, write):
    table = write(tmp_path / "pairs", ROWS, ("original", "note", "cropped"))
    with pytest.raises(InputError) as caught:
        from_table(table)
    assert str(caught.value).startswith(f"{table}: needs the columns original and crop, as CSV with a header or Parquet (")
    assert "crop" in str(caught.value).partition("(")[2]


@pytest.mark.parametrize("data", [b"", b"PAR1 and nothing more", b"original,crop\na.jpg\n", b"original,crop\n\xff.jpg,a.png\n"])
def test_damaged_table_is_refused(tmp_path, data):
    (tmp_path / "pairs.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"pairs\.csv: needs the columns original and crop"):
        from_table(str(tmp_path / "pairs.csv"))


def test_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: this table of pairs cannot be read \(.*does not exist\)"):
        from_table(str(tmp_path / "none.csv"))


def test_table_without_rows_has_no_pairs(tmp_path):
    assert from_table(as_csv(tmp_path / "pairs.csv", [])) == []


@pytest.mark.parametrize("rows", [[], [("", "")]])
def test_table_to_match_that_names_no_pairs_is_refused(tmp_path, rows):
    for table in (as_csv(tmp_path / "pairs.csv", rows), as_parquet(tmp_path / "pairs", rows)):
        with pytest.raises(InputError) as caught:
            find(None, None, table)
        told = "names no pairs: no row has an original or a crop. Write one pair a row, below the header."
        assert str(caught.value) == f"{table}: {told}"


def test_table_names_a_scheme_nobody_reads(tmp_path):
    with pytest.raises(UsageError, match="the scheme https:// is not known"):
        from_table(as_csv(tmp_path / "pairs.csv", [("https://host/a.jpg", "a.png")]))


def test_name_with_a_zero_byte_is_one_bad_row_and_not_the_end(tmp_path):
    found = from_table(as_parquet(tmp_path / "pairs", [("a\0.jpg", "a.png"), ("b.jpg", "b.png")]))
    assert len(found) == 2


def test_table_saved_by_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbforiginal,crop\r\na.jpg,NA\r\n")
    [pair] = from_table(str(tmp_path / "pairs.csv"))
    assert (pair.original_uri, pair.crop_uri) == (f"{tmp_path}/a.jpg", f"{tmp_path}/NA")


def test_stamp_of_a_row_changes_when_a_file_does(tmp_path):
    table = as_csv(tmp_path / "pairs.csv", [("a.jpg", "b.jpg")])
    stamps = [from_table(table)[0].stamp]
    for content in (b"1", b"22"):
        (tmp_path / "a.jpg").write_bytes(content)
        stamps.append(from_table(table)[0].stamp)
    assert len(set(stamps)) == 3
