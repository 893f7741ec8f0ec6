"""Using a trained model: boxes for pictures, with how sure each edge is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cropreg import boxes, calibration, checkpoint, novelty, proportions, storage
from cropreg.augment import out_of_window
from cropreg.boxes import from_margins, in_order
from cropreg.checkpoint import CheckpointInfo
from cropreg.dataset import cut_window, normalise, normalised_strips, squash
from cropreg.images import decode_reduced, read_header
from cropreg.images.streamed import decode_streamed, is_streamed
from cropreg.model import CropRegressor
from cropreg.strips import OUTWARD, REACH, cut_strips, extents_of, moved

# How much of each predicted margin a second and third look cut away.  Looks nearer to the box see its edges larger, and where they
# disagree with the first one the model is unsure.
LOOKS = (0.45, 0.75)
_DISAGREEMENT = 0.1  # how much of the distance between first and second look counts as doubt
FROM_OUTSIDE = 0.02  # share of the side: from a little outside, the first border is the whole print's and no line in the photograph
_FIRST_OFF = 0.03  # share of the side by which any edge of a first look may be off: its spread hardly tells one edge from another


@dataclass(frozen=True)
class Network:
    """What a model computes, whatever runs it.

    Attributes:
        look: pictures (N, 3, side, side) uint8 RGB, squashed, to margins (N, 4), how unsure each is (N, 4), and features (N, F) that say
            what kind of picture each is; F is 0 where nothing was learned of kinds.
        edges: strips (N, 4, ALONG_PX, ACROSS_PX, 3) uint8 and their extents (N, 4, EXTENTS) to how far inward each edge lies and how
            unsure that is, two (N, 4) in shares of the reach; None for a model without a second look.
    """

    look: Callable[[torch.Tensor], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]
    edges: Callable[[NDArray[np.uint8], NDArray[np.float32]], tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None


@dataclass(frozen=True)
class Predictions:
    """Boxes of N pictures.

    Attributes:
        boxes_norm: (N, 4) x1, y1, x2, y2 in shares of the picture, within it, with at least a thousandth of area per side.
        spread: (N, 4) how unsure each edge is, shares of the picture: the standard deviation over the looks, with what they say of it
            themselves, if they do; with a refiner what it says of its strip.
        unlike: (N,) how far each picture lies from those that the model learned from, in multiples of what is ordinary: above 1 is
            another kind of picture; NaN where nothing was learned of kinds.
    """

    boxes_norm: NDArray[np.float64]
    spread: NDArray[np.float64]
    unlike: NDArray[np.float64]


class Predictor:
    """A trained model ready to crop.

    Example::

        predictor = Predictor.open("runs/first")
        predictions = predictor.predict([picture])       # uint8 (H, W, 3) RGB, upright
        low_high = predictor.intervals(predictions)      # (1, 4, 2)
    """

    def __init__(self, model: CropRegressor | Network, info: CheckpointInfo, device: torch.device | str = "cpu") -> None:
        self.info = info
        self._untrimmed = info.architecture.trims_to is not None  # what is found is trimmed to an aspect at the end
        self._network = _by_torch(model, torch.device(device)) if isinstance(model, torch.nn.Module) else model

    @classmethod
    def open(cls, run: str, device: torch.device | str = "cpu") -> Predictor:
        """Opens the best checkpoint of a run, or a checkpoint folder itself.

        Raises:
            InputError, ModelError: there is none, or it is damaged.
        """
        return cls(*checkpoint.load(checkpoint.best_of(storage.absolute(run))), device)

    def predict(self, pictures: Sequence[NDArray[np.uint8]]) -> Predictions:
        """Boxes for pictures (H, W, 3) uint8 RGB, upright, of any sizes; one batch through the model per look."""
        whole = np.tile([0.0, 0.0, 1.0, 1.0], (len(pictures), 1))
        first, unsure, kind = self._look(pictures, whole)
        unlike = novelty.times_limit(kind, self.info.calibration.novelty if self.info.calibration else None)
        looks = [(first, unsure)]
        for cut in LOOKS:
            windows = whole + (first - whole) * cut
            looks.append(self._look(pictures, windows)[:2])
        stacked, said = (np.stack(values) for values in zip(*looks, strict=True))  # (looks, N, 4) both
        found, spread = in_order(stacked.mean(axis=0)), np.hypot(stacked.std(axis=0), said.mean(axis=0))
        if self.info.proportion is not None and not self._untrimmed:
            held, _ = self._held(pictures, found, np.full_like(found, _FIRST_OFF))
            found, spread = held, np.hypot(spread, _DISAGREEMENT * np.abs(held - found))
        if self._network.edges is not None:
            if self._untrimmed:
                found = in_order(np.clip(found + FROM_OUTSIDE * OUTWARD, 0, 1))
            found, spread = self._refined(pictures, found)
        if self.info.proportion is not None and self._untrimmed:
            found, spread = proportions.trimmed_to(found, spread, _sizes_wh(pictures), self.info.proportion)
            found = in_order(found)
        return Predictions(found, spread, unlike)

    def _refined(
        self, pictures: Sequence[NDArray[np.uint8]], found: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Looks along the edges of boxes (N, 4), and again along those it finds there: an edge far off comes into the middle so."""
        assert self._network.edges is not None
        box, spread = found, np.zeros_like(found)
        for _ in range(2):
            strips = np.stack([cut_strips(pixels, edges) for pixels, edges in zip(pictures, box, strict=True)])
            extents = np.stack([extents_of(b, (p.shape[1], p.shape[0])) for p, b in zip(pictures, box, strict=True)])
            inward, unsure = self._network.edges(strips, extents)
            box = in_order(np.clip(moved(box, inward), 0, 1))
            box, spread = self._held(pictures, box, np.hypot(unsure * REACH, _DISAGREEMENT * np.abs(box - found)))
        return box, spread

    def _held(
        self, pictures: Sequence[NDArray[np.uint8]], box: NDArray[np.float64], spread: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) on the aspect that all training crops had, if they had one, and their spread (N, 4)."""
        if self.info.proportion is None or self._untrimmed:
            return box, spread
        box, spread = proportions.held_to(box, spread, _sizes_wh(pictures), self.info.proportion)
        return in_order(np.clip(box, 0, 1)), spread

    def predict_all(self, pictures: Iterable[NDArray[np.uint8]], batch_size: int) -> Predictions:
        """Like :meth:`predict`, for any number of pictures, ``batch_size`` in memory at a time."""
        batches = [self.predict(batch) for batch in _batched(pictures, batch_size)]
        if not batches:
            return Predictions(np.empty((0, 4)), np.empty((0, 4)), np.empty(0))
        return Predictions(*(np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(Predictions)))

    def kinds(self, pictures: Iterable[NDArray[np.uint8]], batch_size: int) -> NDArray[np.float64]:
        """What kind of picture each is: features (N, F) of one look."""
        whole = np.array([[0.0, 0.0, 1.0, 1.0]])
        batches = [self._look(batch, whole.repeat(len(batch), axis=0))[2] for batch in _batched(pictures, batch_size)]
        return np.concatenate(batches) if batches else np.empty((0, 0))

    def intervals(self, predictions: Predictions) -> NDArray[np.float64]:
        """(N, 4, 2) lowest and highest place of each edge, shares of the picture; the whole picture when nothing can be promised."""
        return calibration.intervals(predictions.boxes_norm, predictions.spread, self.info.calibration)

    def confidence(self, predictions: Predictions) -> NDArray[np.float64]:
        """(N,) probability that the crop is good; NaN when there were too few pairs to learn it."""
        return calibration.confidence(predictions.spread, self.info.calibration)

    def _look(
        self, pictures: Sequence[NDArray[np.uint8]], windows: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Boxes (N, 4) as seen through windows (N, 4) of the pictures, how unsure their edges are (N, 4), both in shares of the pictures,
        and features (N, F) of what is seen.
        """
        side = self.info.architecture.image_side
        cut = [cut_window(pixels, window) for pixels, window in zip(pictures, windows, strict=True)]
        margins, unsure, kind = self._network.look(torch.stack([squash(view, side) for view, _ in cut]))
        seen = np.stack([window for _, window in cut])
        found = out_of_window(from_margins(np.clip(margins, 0, 1)), seen)
        return in_order(found), unsure * np.tile(seen[:, 2:] - seen[:, :2], 2), kind


def _sizes_wh(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    return np.array([pixels.shape[1::-1] for pixels in pictures], np.int64)


@dataclass(frozen=True)
class SmallPicture:
    """A picture as small as the model needs it, and where its pixels lie in the original.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        size_wh: of the original, upright px.
        orientation: EXIF value of the original's file.
        window_px: (4,) what of the original the small pixels show: a decoder that shrinks leaves out a rest of some px at two sides.
        pages: how many the file has; the pixels are the first one's.
    """

    pixels: NDArray[np.uint8]
    size_wh: tuple[int, int]
    orientation: int
    window_px: NDArray[np.float64]
    pages: int = 1

    def to_original(self, box_norm: NDArray[np.float64]) -> NDArray[np.float64]:
        """A box (4,) in shares of the small picture, in pixels of the original, within it."""
        shown = out_of_window(box_norm, boxes.normalise(self.window_px, self.size_wh))
        return boxes.denormalise(np.clip(shown, 0, 1), self.size_wh)


def read_small(data: bytes, name: str, max_pixels: int, long_px: int, path: str | None = None) -> SmallPicture:
    """Decodes a picture to a long side of at most ``long_px``, as cheaply as its format allows.

    With the ``path`` of its file, ``data`` may be mapped, and a large TIFF is never whole in memory.

    Raises:
        UnreadableImage: it cannot be decoded whole.
    """
    header = read_header(data, name, max_pixels=max_pixels)
    factor = next((f for f in (8, 4, 2) if max(header.width, header.height) >= f * long_px), 1)
    if path is not None and is_streamed(data, header):
        pixels, (x, y) = decode_streamed(path, name, header, factor), (0, 0)
    else:
        reduced = decode_reduced(data[:], name, factor, grey=False, header=header, max_pixels=max_pixels)
        pixels, (x, y) = reduced.pixels, reduced.shift_xy
    height, width = pixels.shape[:2]
    scale = long_px / max(height, width)
    if scale < 1:
        size_wh = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
    window_px = np.array([x, y, x + factor * width, y + factor * height], np.float64)
    return SmallPicture(pixels, (header.width, header.height), header.orientation, window_px, header.pages)


def _by_torch(model: CropRegressor, device: torch.device) -> Network:
    model = model.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def look(pixels: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        images = normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        margins, unsure, kind = (values.float().cpu().numpy().astype(np.float64) for values in model.look(images))
        return margins, unsure, kind

    @torch.inference_mode()
    def edges(strips: NDArray[np.uint8], extents: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert model.refiner is not None
        logits = model.refiner(normalised_strips(strips).to(device), torch.from_numpy(extents).to(device))
        mean, deviation = model.refiner.read(logits.float())
        return mean.cpu().numpy().astype(np.float64), deviation.cpu().numpy().astype(np.float64)

    return Network(look, edges if model.refiner is not None else None)


def _batched(pictures: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(pictures)
    while batch := list(islice(iterator, size)):
        yield batch
