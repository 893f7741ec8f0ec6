"""The training examples: a map-style dataset that holds columns of the table and decodes one picture when it is asked for one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from cropreg import boxes, storage
from cropreg.augment import grainy, into_window, reframed_window
from cropreg.cache import Cache
from cropreg.errors import InputError, UnreadableImage
from cropreg.images import DEFAULT_MAX_PIXELS, decode_color, encode_jpeg
from cropreg.proxies import Proxies
from cropreg.schema import FOUND, BoxDataset
from cropreg.splits import is_within
from cropreg.strips import OUTWARD, cut_strips, extents_of, jittered, offsets_between, widened

_STRIPS, _NOISE, _TURN = 1, 2, 3  # tell the chance of strips, of noise and of turns from that of frames
_WORST_JPEG, _BEST_JPEG = 20, 95
_TRIMMED = 0.2  # share of a crop's side that may have been trimmed at either end
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the backbone's weights were trained with


@dataclass(frozen=True)
class Labels:
    """The found rows of a box dataset, as columns.

    Attributes:
        pair_ids, original_ids, original_uris, groups: Arrow string arrays (N).
        sizes_wh: (N, 2) int64, upright pixels of the originals.
        boxes_norm: (N, 4) float64, shares of the original.
    """

    pair_ids: pa.Array
    original_ids: pa.Array
    original_uris: pa.Array
    groups: pa.Array
    sizes_wh: NDArray[np.int64]
    boxes_norm: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes_norm)


def read_labels(dataset: BoxDataset, split: str, share: float = 1.0, seed: int = 0) -> Labels:
    """Reads the rows that train or judge: verdict ``found``, of one split or of ``all``; sorted by ``pair_id``.

    With a ``share`` below 1 only of so many of the groups; which ones depends on the ``seed``, and a smaller share lies within a larger.
    """
    columns = [
        "pair_id",
        "original_id",
        "original_uri",
        "group",
        "original_w",
        "original_h",
        "x1",
        "y1",
        "x2",
        "y2",
        "verdict",
        "split",
    ]
    table = dataset.pairs(columns)
    keep = pc.equal(table["verdict"], FOUND)
    if split != "all":
        keep = pc.and_(keep, pc.equal(table["split"], split))
    table = table.filter(keep)
    if share < 1:
        table = table.filter(pa.array([is_within(group, share, seed) for group in table["group"].to_pylist()], pa.bool_()))
    sizes_wh = np.stack([table[c].to_numpy() for c in ("original_w", "original_h")], 1).astype(np.int64)
    boxes_px = np.stack([table[c].to_numpy() for c in ("x1", "y1", "x2", "y2")], 1).astype(np.float64)
    pair_ids, original_ids, uris, groups = (table[c].combine_chunks() for c in ("pair_id", "original_id", "original_uri", "group"))
    del table, keep
    pa.default_memory_pool().release_unused()  # reading a large table leaves several times its size with Arrow, for the whole training
    return Labels(pair_ids, original_ids, uris, groups, sizes_wh, boxes.normalise(boxes_px, sizes_wh))


class CropDataset(Dataset[tuple[Any, ...]]):
    """Pictures and their boxes, decoded one at a time.

    Holds the table's columns only; ``dataset[i]`` decodes one proxy (or the original) and returns

    - the picture: float32 (3, side, side), normalised, squashed to a square;
    - the box: float32 (4,) x1, y1, x2, y2 in shares of what the picture shows;
    - ``i``, to name the pair when something is wrong with it;
    - with ``strips``: float32 (4, 3, ALONG_PX, ACROSS_PX), normalised, what lies along the edges of a box that is a little off, float32
      (4, EXTENTS) their extents, and float32 (4,) where in them the true edges are (:mod:`cropreg.strips`).

    Args:
        dataset: the box dataset.
        split: ``train``, ``val``, ``calib``, ``test`` or ``all``.
        side: px.
        augment: re-frame, recolour and, if asked, flip, turn and make worse, at random.  What happens to a row depends on the seed, the
            epoch (:meth:`set_epoch`) and the row alone, not on who loads it.
        read_from: ``proxies`` or ``originals``.
        strips: give strips, too.
        share: of the groups, as :func:`read_labels` takes it.
        cache: where proxies on an object store are kept on this machine; by default the user's own folder.

    Attributes:
        untrimmed: whether frames and strips are to show what was trimmed to one aspect, too.

    Raises:
        InputError: a row has no proxy, or its picture cannot be read any more.
    """

    def __init__(
        self,
        dataset: BoxDataset,
        split: str,
        side: int,
        *,
        augment: bool = False,
        flip: Literal["none", "horizontal", "vertical", "both"] = "none",
        reframe: float = 0.5,
        color: float = 0.2,
        noise: float = 0.0,
        turn: float = 0.0,
        read_from: Literal["proxies", "originals"] = "proxies",
        seed: int = 0,
        strips: bool = False,
        share: float = 1.0,
        cache: Cache | None = None,
    ) -> None:
        self._dataset_uri, self._strips = dataset.uri, strips
        self.untrimmed = False
        self.labels = read_labels(dataset, split, share, seed)
        self._side, self._augment, self._reframe, self._color, self._seed = side, augment, reframe, color, seed
        self._noise, self._turn = (noise, turn) if augment else (0.0, 0.0)
        self._max_pixels = int(
            dataset.manifest["config"].get("max_pixels", DEFAULT_MAX_PIXELS)
        )  # what matching took, training takes
        self._proxies = Proxies(dataset, cache) if read_from == "proxies" else None
        self._positions = self._proxies.locate(self.labels.original_ids) if self._proxies else None
        if self._positions is not None and (self._positions < 0).any():
            missing = self.labels.original_uris[int(np.argmin(self._positions))]
            raise InputError(f"{dataset.uri}: no proxy of {missing}. Match again, or train with --from originals.")
        steps: list[Any] = [v2.Resize((side, side), antialias=True)]
        if augment and flip in ("horizontal", "both"):
            steps.append(v2.RandomHorizontalFlip())
        if augment and flip in ("vertical", "both"):
            steps.append(v2.RandomVerticalFlip())
        if augment and color > 0:
            steps.append(v2.ColorJitter(brightness=color, contrast=color, saturation=color, hue=color / 10))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self._transform = v2.Compose(steps)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loading processes that live on see it change

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Makes the chance of augmentation that of ``epoch``."""
        self._epoch.fill_(epoch)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """The picture of a row as it is stored, (H, W, 3) RGB."""
        uri = self.labels.original_uris[index].as_py()
        if self._proxies is not None and self._positions is not None:
            try:
                return decode_color(self._proxies.jpeg(int(self._positions[index])), uri)
            except UnreadableImage as error:
                raise InputError(
                    f"{self._dataset_uri}: the proxy of {uri} {error.cause}. Match again with --overwrite, or read --from originals."
                ) from error
        try:
            return decode_color(storage.read_bytes(uri), uri, max_pixels=self._max_pixels)
        except OSError as error:
            raise InputError(
                f"{uri}: this original cannot be read any more ({error}). Restore it, or train from proxies."
            ) from error

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pixels, box = self.picture(index), self.labels.boxes_norm[index]
        if self._turn:
            pixels = turned(pixels, box, self._turn, np.random.default_rng([self._seed, int(self._epoch), index, _TURN]))
        if self._noise:
            pixels = self._worse(pixels, index)
        more = self._along_edges(pixels, index) if self._strips else ()
        with torch.random.fork_rng(devices=[], enabled=self._augment):
            if self._augment:
                words = hashlib.sha256(f"{self._seed}/{int(self._epoch)}/{index}".encode()).digest()
                torch.default_generator.manual_seed(int.from_bytes(words[:7], "big"))  # torch.manual_seed would seed the GPU's too
                window = reframed_window(
                    around(box) if self.untrimmed else box, self._reframe, np.random.default_rng(list(words[7:15]))
                )
                pixels, window = cut_window(pixels, window)
                box = into_window(box, window)
            height, width = pixels.shape[:2]
            image = tv_tensors.Image(_tensor(pixels))
            box_px = torch.from_numpy(boxes.denormalise(box, (width, height)).astype(np.float32))[None]
            framed = tv_tensors.BoundingBoxes(box_px, format="XYXY", canvas_size=(height, width))
            image, framed = self._transform(image, framed)
        return image.as_subclass(torch.Tensor), framed.as_subclass(torch.Tensor)[0] / self._side, index, *more

    def _worse(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """The picture with grain, and every other one saved as a JPEG of a lower quality; seen so by both looks."""
        rng = np.random.default_rng([self._seed, int(self._epoch), index, _NOISE])
        pixels = grainy(pixels, self._noise, rng)
        if rng.random() < 0.5:
            return pixels
        quality = round(_BEST_JPEG - (_BEST_JPEG - _WORST_JPEG) * self._noise * rng.random())
        return decode_color(encode_jpeg(pixels, quality), "a picture made worse")

    def _along_edges(self, pixels: NDArray[np.uint8], index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Strips of a box that is off by chance, recoloured and mirrored along the edge, its extents, and the offsets of the true one."""
        true = self.labels.boxes_norm[index]
        rng = np.random.default_rng([self._seed, int(self._epoch), index, _STRIPS])
        box = jittered(true, rng)
        if self.untrimmed:
            box = widened(box, true, rng)
        strips = normalised_strips(cut_strips(pixels, box))
        strips = (
            strips * (1 + self._color * float(rng.normal())) + self._color * torch.from_numpy(rng.normal(size=(3, 1, 1))).float()
        )
        mirrored = torch.from_numpy(rng.random(4) < 0.5)[:, None, None, None]
        strips = torch.where(mirrored, strips.flip(2), strips)
        extents = extents_of(box, (pixels.shape[1], pixels.shape[0]))
        return strips, torch.from_numpy(extents), torch.from_numpy(offsets_between(box, true)).float()


def around(box_norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of the picture an untrimmed box about a crop's (4,) may be."""
    grown = np.tile(box_norm[2:] - box_norm[:2], 2) * _TRIMMED
    return np.clip(box_norm + grown * OUTWARD, 0, 1)


def cut_window(pixels: NDArray[np.uint8], window_norm: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cuts a window (4,) in shares out of a picture (H, W, 3); returns the view, and the window it is: to whole pixels outwards."""
    height, width = pixels.shape[:2]
    x1, y1 = int(window_norm[0] * width), int(window_norm[1] * height)
    x2, y2 = max(int(np.ceil(window_norm[2] * width)), x1 + 1), max(int(np.ceil(window_norm[3] * height)), y1 + 1)
    return pixels[y1:y2, x1:x2], boxes.normalise([x1, y1, x2, y2], (width, height))


def turned(
    pixels: NDArray[np.uint8], box_norm: NDArray[np.float64], most_deg: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 turned about the centre of its box, by an angle drawn evenly from +-``most_deg``; the box stays.

    What comes from outside the picture is its border, repeated.
    """
    if most_deg == 0 or rng.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    x, y = (box_norm[:2] + box_norm[2:]) / 2 * (width, height) - 0.5
    turn = cv2.getRotationMatrix2D((float(x), float(y)), most_deg * float(rng.uniform(-1, 1)), 1.0)
    return np.asarray(
        cv2.warpAffine(pixels, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def squash(pixels: NDArray[np.uint8], side: int) -> torch.Tensor:
    """A picture (H, W, 3) squashed to a square: uint8 (3, side, side)."""
    return v2.functional.resize(_tensor(pixels), [side, side], antialias=True)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Squashed pictures (..., 3, side, side) uint8 as the model sees them: float32; what the dataset does unaugmented."""
    return v2.functional.normalize(pixels.float() / 255, list(MEAN), list(STD))


def normalised_strips(strips: NDArray[np.uint8]) -> torch.Tensor:
    """Strips (..., ALONG_PX, ACROSS_PX, 3) as the refiner sees them: float32 (..., 3, ALONG_PX, ACROSS_PX)."""
    values = torch.from_numpy(np.ascontiguousarray(strips)).movedim(-1, -3).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """A picture (H, W, 3) as a tensor (3, H, W); Pillow's are read-only, which PyTorch warns of."""
    return torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)


cv2.setNumThreads(1)  # processes that load in parallel must not each start a thread per core
