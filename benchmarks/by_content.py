"""How well ``cropreg match --by-content`` finds the originals of renamed crops, with near-duplicates among the originals.

    python benchmarks/by_content.py [--photos DIR ...] [--originals 500] [--crops 400] [--seed 1] [--out by_content.json] [--wrong DIR]

Originals are tiles of the photographs, mirrored or not; without photographs they are drawn.  One in five is a near-duplicate of another:
saved again, shifted by some pixels, toned, a neighbouring frame, or with a thing moved.  Crops are cut from any of them, resized by 0.15
to 1.75, toned, turned by up to 3 degrees; one in ten from a picture that is not among the originals.  ``listed``: its original is on the
shortlist; ``findable``: the matcher finds the crop in its original when it is told which (smooth tiles and tiny crops it does not).
Times are CPU time of one thread.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from made_pairs import Pixels, burst, drawn, edited, encode, one_of_each, painted_over, resized, turned, upright
from PIL import Image

from cropreg.content.decide import decide
from cropreg.content.describe import NUM_CROP, describe
from cropreg.content.index import SHORTLIST, Index
from cropreg.matching.find import Picture, find_in
from cropreg.matching.settings import MatcherSettings

TWINS = ("saved_again", "shifted", "toned", "burst", "moved")
CHANGES = ("kept", "resized", "edited", "resized_edited", "turned", "turned_resized")
SIZE_PX = 2_300_000  # of an original: just above what is decoded whole at once


@dataclass
class Made:
    """An original: its file, what it is (``single``, ``first`` of twins, or a kind of twin), and the family of its twins."""

    data: bytes
    kind: str
    family: int


def bases(paths: list[Path], count: int, rng: np.random.Generator) -> list[tuple[Path | None, int, bool]]:
    """Different pictures: a photograph, the number of a tile, mirrored or not."""
    if not paths:
        return [(None, i, False) for i in range(count)]
    choices: list[tuple[Path | None, int, bool]] = []
    for path in paths:
        w, h = Image.open(path).size
        choices += [(path, tile, flip) for tile in range(9 if w * h > 5e6 else 1) for flip in (False, True)]
    if len(choices) < count:
        raise SystemExit(
            f"{len(paths)} photographs give {len(choices)} different pictures, and {count} are needed: name more folders"
        )
    return [choices[i] for i in rng.permutation(len(choices))[:count]]


def picture(base: tuple[Path | None, int, bool], rng: np.random.Generator) -> Pixels:
    """The pixels of a base at about SIZE_PX; enlarged ones get a sensor's noise."""
    path, tile, flip = base
    if path is None:
        return drawn(rng, 1860 + int(rng.integers(8)), 1240 + int(rng.integers(8)))
    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))
    h, w = pixels.shape[:2]
    if w * h > 5e6:
        pixels = pixels[(tile // 3) * (h // 3) :, (tile % 3) * (w // 3) :][: h // 3, : w // 3]
    ratio = (SIZE_PX / pixels.shape[0] / pixels.shape[1]) ** 0.5
    pixels = cv2.resize(pixels, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LANCZOS4)
    noisy = pixels + rng.normal(0, 2.0 if ratio > 1 else 0.7, pixels.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)[int(rng.integers(8)) :, int(rng.integers(8)) :]
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)


def twin(pixels: Pixels, kind: str, rng: np.random.Generator) -> Pixels:
    """A near-duplicate of an original's pixels."""
    if kind == "shifted":
        x1, y1, x2, y2 = (int(v) for v in rng.integers(1, 24, 4))
        return np.ascontiguousarray(pixels[y1:-y2, x1:-x2])
    if kind == "toned":
        curve = (np.arange(256) / 255) ** rng.uniform(0.8, 1.25) * rng.uniform(0.9, 1.05) * 255
        return np.asarray(cv2.LUT(pixels, np.clip(curve, 0, 255).astype(np.uint8)))
    if kind == "burst":
        return burst(pixels, rng)
    if kind == "moved":
        noise = rng.normal(0, 2, pixels.shape)
        return painted_over(np.clip(pixels + noise, 0, 255).astype(np.uint8), rng)
    return pixels


def make_originals(paths: list[Path], count: int, absent: int, rng: np.random.Generator) -> tuple[dict[str, Made], list[Made]]:
    """Originals by name, and pictures that are not among them."""
    singles = round(count * 0.8)
    chosen = bases(paths, singles + absent, rng)
    made: list[Made] = []
    for family in range(singles):
        made.append(Made(encode(picture(chosen[family], rng), quality=int(rng.choice([85, 92, 95]))), "single", family))
    while len(made) < count:
        family = int(rng.integers(singles // 3))  # so that some have two twins, and some three
        kind = TWINS[len(made) % len(TWINS)]
        made[family].kind = "first"
        data = encode(twin(upright(made[family].data), kind, rng), quality=int(rng.choice([75, 85, 92, 95])))
        made.append(Made(data, kind, family))
    names = [f"{v:06d}.jpg" for v in rng.permutation(count)]
    others = [Made(encode(picture(b, rng), quality=92), "absent", -1) for b in chosen[singles:]]
    return dict(zip(names, made, strict=True)), others


def make_crop(original: Made, change: str, rng: np.random.Generator) -> bytes:
    """The file of a crop of at least 0.4 of each side."""
    pixels = upright(original.data)
    h, w = pixels.shape[:2]
    cw, ch = int(w * rng.uniform(0.4, 0.95)), int(h * rng.uniform(0.4, 0.95))
    if change.startswith("turned"):
        cw, ch = min(cw, int(0.8 * w)), min(ch, int(0.8 * h))
    x, y = int(rng.integers(w - cw + 1)), int(rng.integers(h - ch + 1))
    scale = float(np.exp(rng.uniform(np.log(0.15), np.log(1.75)))) if "resized" in change else 1.0
    if change.startswith("turned"):
        x, y = (w - cw) // 2, (h - ch) // 2
        crop = turned(pixels, (x, y, x + cw, y + ch), float(rng.uniform(-3, 3)), scale)
    else:
        crop = pixels[y : y + ch, x : x + cw]
        crop = resized(crop, scale, rng) if scale != 1 else crop
    if "edited" in change:
        crop = edited(crop, rng)
    return encode(np.ascontiguousarray(crop), quality=int(rng.choice([80, 90, 95])))


def outcome(truth: str | None, given: str | None) -> str:
    """What became of a crop, ``absent`` being right where its original is not there."""
    if given == truth:
        return "right" if truth else "absent"
    return "unpaired" if given is None else "false"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--photos", type=Path, nargs="*", default=[], help="folders; pictures of 0.4 megapixels or more are used"
    )
    arguments.add_argument("--originals", type=int, default=500)
    arguments.add_argument("--crops", type=int, default=400)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--out", type=Path, help="the figures as JSON")
    arguments.add_argument(
        "--wrong", type=Path, help="a folder for the crops that were given to a wrong original, and both originals"
    )
    o = arguments.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(o.seed)
    pictures = (p for folder in o.photos for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = [p for p in one_of_each(list(pictures)) if np.prod(Image.open(p).size) >= 4e5]
    num_absent = o.crops // 10
    originals, absent = make_originals(paths, o.originals, num_absent, rng)
    print(f"{len(paths)} photographs, {len(originals)} originals: {dict(collections.Counter(m.kind for m in originals.values()))}")

    began = time.process_time()
    index = Index({name: describe(Picture(made.data, name)) for name, made in originals.items()})
    describe_ms = (time.process_time() - began) / len(originals) * 1000
    names = sorted(originals)
    settings = MatcherSettings()
    tally: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: collections.Counter[str] = collections.Counter()
    shortlist_s, decide_s, problems = 0.0, [], []
    for number in range(o.crops):
        change = CHANGES[number % len(CHANGES)]
        truth = None if number < num_absent else names[int(rng.integers(len(names)))]
        source = originals[truth] if truth else absent[number]
        data = make_crop(source, change, rng)
        crop = Picture(data, f"crop {number}")
        began = time.process_time()
        likely = index.shortlist(describe(crop, NUM_CROP), SHORTLIST)
        shortlist_s += time.process_time() - began
        began = time.process_time()
        *_, decision = decide(crop, likely, lambda name: Picture(originals[name].data, name, with_proxy=True), settings)
        decide_s.append(time.process_time() - began)
        became = outcome(truth, decision.original)
        keys = (("original", source.kind), ("crop", change if truth else "absent"), ("all", "present" if truth else "absent"))
        for key in keys:
            tally[key][became] += 1
            tally[key]["listed"] += truth is None or any(c.name == truth for c in likely)
        findable = (
            became in ("right", "absent")
            or truth is None
            or find_in(Picture(source.data, truth, with_proxy=True), crop, settings).verdict == "found"
        )
        for key in keys:
            tally[key]["findable"] += findable
        if became in ("unpaired", "false"):
            problems.append(
                {
                    "crop": number,
                    "change": change,
                    "size_wh": crop.size_wh,
                    "kind": source.kind,
                    "truth": truth,
                    "became": became,
                    "decision": decision.original,
                    "reason": decision.reason,
                    "listed": [c.__dict__ for c in likely[:4]],
                }
            )
            reasons[f"{became}: {source.kind}: {' '.join((decision.reason or '').split(' ')[2:5])}"] += 1
        if became == "false" and o.wrong:
            o.wrong.mkdir(parents=True, exist_ok=True)
            (o.wrong / f"{number}_crop.jpg").write_bytes(data)
            for name in {truth, decision.original} - {None}:
                (o.wrong / f"{number}_{name}").write_bytes(originals[name].data)
    print(f"{'':10s} {'':15s} {'crops':>6s} {'right':>6s} {'unpaired':>8s} {'false':>6s} {'listed':>6s} {'findable':>8s}")
    for (what, kind), c in sorted(tally.items()):
        crops = sum(c[k] for k in ("right", "absent", "unpaired", "false"))
        figures = f"{crops:6d} {c['right'] + c['absent']:6d} {c['unpaired']:8d} {c['false']:6d} {c['listed']:6d} {c['findable']:8d}"
        print(f"{what:10s} {kind:15s} {figures}")
    present = tally["all", "present"]
    summary = {
        "originals": len(originals),
        "crops": o.crops,
        "recall": round(present["right"] / (o.crops - num_absent), 4),
        "recall_of_findable": round(present["right"] / max(present["findable"], 1), 4),
        "recall_of_findable_singles": round(
            tally["original", "single"]["right"] / max(tally["original", "single"]["findable"], 1), 4
        ),
        "false_pairs": sum(tally["all", kind]["false"] for kind in ("present", "absent")),
        "unpaired": present["unpaired"],
        "absent_left_unpaired": tally["all", "absent"]["absent"],
        "describe_ms_per_original": round(describe_ms, 1),
        "shortlist_ms_per_crop": round(shortlist_s / o.crops * 1000, 1),
        "decide_ms_per_crop_median": round(float(np.median(decide_s)) * 1000, 1),
        "decide_ms_per_crop_mean": round(float(np.mean(decide_s)) * 1000, 1),
        "bytes_per_original": round(index.num_bytes / len(originals)),
    }
    for text, number in reasons.most_common(12):
        print(f"{number:4d}  {text}")
    print(json.dumps(summary, indent=1))
    if o.out:
        o.out.write_text(json.dumps(summary | {"problems": problems}, indent=1, default=str))


if __name__ == "__main__":
    main()
