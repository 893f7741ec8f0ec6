"""The dataset: what it holds, what it decodes, and that augmentation keeps picture and box together."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import framed_print

from cropreg.augment import grainy, into_window, out_of_window, reframed_window
from cropreg.dataset import CropDataset, cut_window, normalise, read_labels, squash, turned
from cropreg.errors import InputError
from cropreg.proxies import Proxies
from cropreg.schema import BoxDataset


def test_labels_hold_only_found_rows_of_the_split(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    sizes = [len(read_labels(dataset, split)) for split in ("train", "val", "calib", "test")]
    assert sum(sizes) == len(read_labels(dataset, "all")) == 57
    assert min(sizes) > 0


def test_dataset_reads_no_picture_until_asked(made_boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    jpeg = Proxies.jpeg
    monkeypatch.setattr(Proxies, "jpeg", lambda self, position: asked.append(position) or jpeg(self, position))
    data = CropDataset(BoxDataset.open(str(made_boxes)), "all", 64)
    assert asked == []
    image, box, row = data[3]
    assert len(asked) == 1
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and row == 3
    assert torch.allclose(box, torch.tensor(data.labels.boxes_norm[3], dtype=torch.float32), atol=1e-5)


def test_proxy_and_original_give_the_same_example(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    proxy, original = (CropDataset(dataset, "val", 64, read_from=source)[0] for source in ("proxies", "originals"))
    assert torch.equal(proxy[1], original[1])
    assert float((proxy[0] - original[0]).abs().mean()) < 0.1  # but for JPEG


def test_missing_original_names_the_file_and_the_cure(made_boxes: Path, tmp_path: Path) -> None:
    data = CropDataset(BoxDataset.open(str(made_boxes)), "val", 64, read_from="originals")
    uri = data.labels.original_uris[0].as_py()
    away = tmp_path / "away.png"
    Path(uri).rename(away)
    try:
        with pytest.raises(InputError, match=rf"{uri}.*cannot be read any more.*proxies"):
            data[0]
    finally:
        away.rename(uri)


def test_augmentation_never_cuts_into_the_box_and_keeps_it_on_the_print(made_boxes: Path) -> None:
    data = CropDataset(BoxDataset.open(str(made_boxes)), "all", 96, augment=True, flip="both", reframe=1.0, color=0.0)
    for epoch in range(3):
        data.set_epoch(epoch)
        for row in range(0, len(data), 5):
            image, box, _ = data[row]
            assert float(box.min()) >= -1e-4 and float(box.max()) <= 1 + 1e-4
            x1, y1, x2, y2 = (box * 96).round().int().tolist()
            inside, bright = image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean(), image[0].max()
            assert inside < bright - 1, "the print is darker than the bed"
            if x1 > 3:
                assert image[0, y1:y2, : x1 - 2].min() > inside, "left of the box lies only the bed"


def test_augmentation_depends_on_seed_epoch_and_row_alone(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    one, other = (CropDataset(dataset, "train", 64, augment=True, seed=5) for _ in range(2))
    torch.manual_seed(1)
    first = [one[i] for i in (0, 1, 2)]
    torch.manual_seed(2)
    again = [other[i] for i in (2, 1, 0)][::-1]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    other.set_epoch(1)
    assert any(not torch.equal(a[0], other[i][0]) for i, a in enumerate(first))


def test_noise_makes_some_pictures_worse_by_as_much_as_asked_and_leaves_the_box(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    plain, little, much = (
        CropDataset(dataset, "all", 96, augment=True, reframe=0.0, color=0.0, noise=noise, strips=True) for noise in (0.0, 0.2, 1.0)
    )
    changes: dict[str, list[float]] = {"little": [], "much": [], "strips": []}
    for row in range(len(plain)):
        (image, box, _, strips, *_), given = plain[row], {"little": little[row], "much": much[row]}
        for name, other in given.items():
            assert torch.equal(box, other[1])
            changes[name].append(float((image - other[0]).abs().mean()))
        changes["strips"].append(float((strips - given["much"][3]).abs().mean()))
    kept = sum(change == 0 for change in changes["much"])
    assert 0 < kept < len(plain) / 2, "a quarter is as it was"
    assert [change == 0 for change in changes["much"]] == [change == 0 for change in changes["strips"]], "both looks see the same"
    assert 0 < 2 * sum(changes["little"]) < sum(changes["much"])
    unaugmented = CropDataset(dataset, "all", 96, noise=1.0)
    assert torch.equal(unaugmented[0][0], CropDataset(dataset, "all", 96)[0][0])


def test_grain_is_as_strong_as_it_says() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((200, 200, 3), 128, np.uint8)
    found = [float(np.std(grainy(grey, 0.4, rng))) for _ in range(200)]
    assert max(found) < 0.4 * 25.5 * 1.05
    assert 0.35 < np.mean(np.array(found) == 0) < 0.65
    assert np.mean([value for value in found if value]) == pytest.approx(0.4 * 25.5 / 2, rel=0.2), "even from none to the strongest"
    assert abs(float(grainy(grey, 1.0, np.random.default_rng(3)).mean()) - 128) < 0.3, "it makes nothing brighter"


def test_turns_are_about_the_box_and_as_far_as_they_say() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[98:102, 225:235] = 255  # 80 px to the right of the box's centre
    box, angles = np.array([0.3, 0.2, 0.7, 0.8]), []
    for seed in range(60):
        found = turned(pixels, box, 5.0, np.random.default_rng(seed))
        y, x = (float(np.average(places, weights=found[..., 0])) for places in np.indices((200, 300)))
        assert np.hypot(x - 149.5, y - 99.5) == pytest.approx(80, abs=0.6), "the distance from the centre is kept"
        angles.append(np.degrees(np.arctan2(y - 99.5, x - 149.5)))
    still = sum(abs(angle) < 1e-6 for angle in angles)
    assert 15 < still < 45 and 4 < max(angles) <= 5.2 and -5.2 <= min(angles) < -4


def test_turned_pictures_keep_their_box_and_only_in_training(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    how = {"reframe": 0.0, "color": 0.0, "strips": True}
    plain, askew = (CropDataset(dataset, "all", 96, augment=True, turn=turn, **how) for turn in (0.0, 3.0))
    changed = [not torch.equal(plain[i][0], askew[i][0]) for i in range(len(plain))]
    assert any(changed) and not all(changed)
    assert all(torch.equal(plain[i][1], askew[i][1]) for i in range(len(plain)))
    assert changed == [not torch.equal(plain[i][3], askew[i][3]) for i in range(len(plain))], "both looks see the same"
    assert torch.equal(CropDataset(dataset, "all", 96, turn=3.0)[0][0], CropDataset(dataset, "all", 96)[0][0])


def test_dataset_travels_to_another_process(made_boxes: Path) -> None:
    data = CropDataset(BoxDataset.open(str(made_boxes)), "val", 64)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[0][0], data[0][0])


def test_row_without_proxy_names_the_picture(made_boxes: Path) -> None:
    dataset = BoxDataset.open(str(made_boxes))
    manifest = {**dataset.manifest, "parts": [p for p in dataset.manifest["parts"] if p["table"] == "pairs"]}
    with pytest.raises(InputError, match=r"no proxy of .*0.*png.*--from originals"):
        CropDataset(BoxDataset(dataset.uri, 1, manifest), "train", 64)


def test_windows_hold_the_box_and_come_back() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        low = rng.uniform(0, 0.5, 2)
        box = np.concatenate([low, low + rng.uniform(0.05, 0.5, 2)])
        window = reframed_window(box, rng.random(), rng)
        assert (window[:2] <= box[:2] + 1e-12).all() and (window[2:] >= box[2:] - 1e-12).all()
        assert np.allclose(out_of_window(into_window(box, window), window), box)


def test_cut_window_says_exactly_what_it_cut() -> None:
    picture, _ = framed_print(1)
    view, window = cut_window(picture, np.array([0.101, 0.2, 0.77, 0.9]))
    x1, y1, x2, y2 = (window * [240, 180, 240, 180]).round().astype(int)
    assert np.array_equal(view, picture[y1:y2, x1:x2])
    assert window[0] <= 0.101 and window[2] >= 0.77


def test_shrink_is_what_the_dataset_does_without_augmentation(made_boxes: Path) -> None:
    data = CropDataset(BoxDataset.open(str(made_boxes)), "val", 64)
    assert float((normalise(squash(data.picture(0), 64)) - data[0][0]).abs().max()) < 0.02  # rounding to 8 bit
