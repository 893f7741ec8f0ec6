"""What each verb can be told: one frozen model a verb, one field a flag."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VERBS = ("match", "train", "evaluate", "predict", "export", "review")
VERDICT_NAMES = ("found", "ambiguous", "doubtful", "flat", "no_match", "unreadable", "crashed", "unpaired")
DEFAULT_RETRY = "unreadable,crashed"
TRACKERS = ("mlflow", "wandb")
ReadFrom = Literal["proxies", "originals"]
Overlap = Literal["giou", "ciou", "iou", "none"]
EdgeLoss = Literal["smooth-l1", "laplace", "dfl"]
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"image_side": 96, "max_epochs": 20, "lr_patience": 3, "patience": 6},
    "balanced": {"image_side": 128, "max_epochs": 60, "lr_patience": 8, "patience": 16},
    "best": {"image_side": 224, "max_epochs": 100, "lr_patience": 10, "patience": 20},
}


class Settings(BaseModel):
    """A group of settings: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MatchSettings(Settings):
    """How ``cropreg match`` finds pairs and writes the box dataset."""

    pair_by: str | None = Field(None, description="regular expression whose group in a crop's name is the original's name")
    by_content: bool = Field(False, description="look for the original of a crop that has none by name among all originals")
    import_: Literal["xmp", "pp3", "coco", "csv"] | None = Field(
        None, description="take the crops from sidecars of other programs, or from a list, instead of matching"
    )
    import_from: str | None = Field(
        None, description="with --import: folder of the sidecars, if not that of the originals; or the COCO or CSV file"
    )
    split: str = Field("70/10/10/10", description="shares of train/val/calib/test in percent, by hash of the original")
    proxy_long_px: int = Field(512, ge=64, le=4096, description="long side of the small copies that training reads, px")
    proxy_quality: int = Field(90, ge=50, le=100, description="JPEG quality of those copies")
    max_pixels: int = Field(400_000_000, ge=1, description="refuse pictures with more pixels than this, from their header")
    pair_timeout_s: float = Field(120, gt=0, description="a pair that takes longer is given up, s; its verdict is crashed")
    pair_memory_mb: int = Field(4096, ge=64, description="a pair that needs more memory than this is given up, MB")
    pairs_per_part: int = Field(0, ge=0, le=100_000, description="pairs in one file of the dataset; 0: by the number of pairs")
    max_bad_share: float = Field(0.5, ge=0, le=1, description="exit code 6 when a larger share of the pairs is not found")
    concurrency: int | None = Field(None, ge=1, description="tasks at a time; default: half as many again as the cluster has CPUs")
    retry_failed: str | None = Field(
        None, description=f"verdicts to match again though nothing changed; without any named: {DEFAULT_RETRY}"
    )
    overwrite: bool = Field(False, description="throw away a dataset that is there and build it again")

    @field_validator("retry_failed", mode="before")
    @classmethod
    def _verdicts(cls, value: object) -> object:
        """Commas or a list; true means the default, false none."""
        if value is None or value is False:
            return None
        names = DEFAULT_RETRY if value is True else ",".join(map(str, value)) if isinstance(value, list) else str(value)
        unknown = sorted(set(names.split(",")) - set(VERDICT_NAMES))
        if unknown:
            raise ValueError(f"no verdict is called {', '.join(unknown)}; there are {', '.join(VERDICT_NAMES)}")
        return names


class TrainSettings(Settings):
    """How ``cropreg train`` learns."""

    preset: Literal["fast", "balanced", "best"] | None = Field(
        None, description="image side, epochs and patience at once; what is set beside it wins"
    )
    weights: str = Field("imagenet", description="start of the backbone: imagenet, none, or a file (.safetensors, .pth)")
    head: Literal["distribution", "spatial", "marginal", "pooled"] = Field(
        "distribution",
        description="distribution keeps where things are, and says where an edge may lie as shares of places; spatial says one number; "
        "marginal keeps the means of rows and columns; pooled averages all away",
    )
    image_side: int = Field(128, ge=64, le=1024, description="side of the square the model sees, px")
    refine: bool = Field(True, description="look again along each predicted edge, at the full resolution of the proxies")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of the head's features left out in training")
    max_epochs: int = Field(60, ge=1, description="epochs at most; early stopping usually ends sooner")
    batch_size: int = Field(32, ge=2, description="pictures in a step, over all workers together")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's step at the start")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled decay of the weights")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs over which the learning rate grows from nought")
    averaging: float = Field(
        0.98, ge=0, lt=1, description="decay per step of the average of weights that is judged and kept; 0: none"
    )
    clip_norm: float = Field(1.0, gt=0, description="the gradient's norm is clipped at this")
    patience: int = Field(16, ge=1, description="stop after so many epochs without a better validation loss")
    lr_patience: int = Field(8, ge=0, description="lower the learning rate after so many epochs without a better validation loss")
    lr_factor: float = Field(0.3, gt=0, lt=1, description="by which the learning rate is then multiplied")
    overlap: Overlap = Field("giou", description="what the IoU loss measures; none: the margins alone count")
    iou_weight: float = Field(1.0, ge=0, description="weight of the IoU loss")
    margin_weight: float = Field(5.0, ge=0, description="weight of the margin loss (mean error of the four edges)")
    edges: EdgeLoss = Field(
        "dfl",
        description="margin loss of an edge: its two nearest places (dfl), which take --head distribution; smooth-l1, default of the "
        "others; laplace learns how unsure each is",
    )
    flip: Literal["none", "horizontal", "vertical", "both"] = Field(
        "none", description="mirror at random; only if the habit has no side"
    )
    reframe: float = Field(0.5, ge=0, le=1, description="how much of the room outside the box re-framing may cut away")
    color: float = Field(0.2, ge=0, le=1, description="strength of random brightness, contrast, saturation")
    noise: float = Field(0.0, ge=0, le=1, description="strength of random grain and of saving as a worse JPEG")
    turn: float = Field(0.0, ge=0, le=15, description="degrees that a picture is turned about its box by, at most, at random")
    from_: ReadFrom = Field("proxies", description="what an epoch decodes")
    loader_workers: int | None = Field(None, ge=0, description="loading processes per training worker; default: by its CPUs")
    num_workers: int | str = Field(
        1,
        description="training workers; MIN:MAX: as many as there is room for, asked every minute; 0 trains in this process, without Ray",
    )
    use_gpu: bool | None = Field(None, description="one GPU a worker; default: if the cluster has any")
    resources: str = Field(
        "",
        description="what a training worker reserves, as CPU=2,GPU=0.5,accelerator_type:A100=0.001; default: its share of the CPUs",
    )
    compile: bool = Field(False, description="translate the model with torch.compile: slower to start, faster steps on a GPU")
    track: str = Field("", description="send the figures of every epoch to mlflow, wandb or mlflow,wandb, too")
    cache_dir: str | None = Field(
        None, description="folder for proxies fetched from an object store; default: CROPREG_CACHE_DIR, else ~/.cache/cropreg"
    )
    cache_gb: float | None = Field(None, gt=0, description="how much that folder may hold, GB; default: CROPREG_CACHE_GB, else 50")
    amp: Literal["auto", "bf16", "fp16", "off"] = Field(
        "auto", description="mixed precision; auto: bf16 or fp16 on a GPU, off on a CPU"
    )
    champion: str | None = Field(
        None, description="run to compare with on the test split: its model stays unless the new one is not worse"
    )
    learning_curve: bool = Field(
        False,
        description="train on an eighth, a quarter and a half of the pairs as well, and say what more would bring; costs 7/8 more",
    )
    max_failures: int = Field(2, ge=0, description="how often a lost worker is replaced")
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")
    resume: bool = Field(False, description="go on from the run's last checkpoint")
    overwrite: bool = Field(False, description="throw away a run that is there and train again")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        """What a preset says of settings that nothing else was said of; a preset nobody knows is refused as the field it is."""
        named = values.get("preset") if isinstance(values, dict) else None
        return {**PRESETS[named], **values} if isinstance(named, str) and named in PRESETS else values

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_head(cls, values: Any) -> Any:
        """The loss of an edge where nothing is said of it: one that the head has numbers for, and that counts."""
        if not isinstance(values, dict) or values.get("edges") is not None:
            return values
        plain = values.get("head", "distribution") != "distribution" or str(values.get("margin_weight", 1)) in ("0", "0.0")
        return {**values, "edges": "smooth-l1" if plain else "dfl"}

    @field_validator("num_workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> object:
        """A number, or MIN:MAX of two."""
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", str(value))
        if found is None:
            raise ValueError("must be a number of workers, or MIN:MAX of two numbers")
        least, most = int(found[1]), int(found[2] or found[1])
        if found[2] is not None and not 1 <= least <= most:
            raise ValueError("of MIN:MAX, MIN must be at least 1 and not more than MAX")
        return least if least == most else f"{least}:{most}"

    @property
    def least_workers(self) -> int:
        """The number of workers without which training does not start."""
        return int(str(self.num_workers).partition(":")[0])

    @property
    def most_workers(self) -> int:
        """The number of workers that training takes if it can."""
        return int(str(self.num_workers).rpartition(":")[2])

    @field_validator("resources")
    @classmethod
    def _are_resources(cls, value: str) -> str:
        read_resources(value)
        return value

    @field_validator("track")
    @classmethod
    def _are_trackers(cls, value: str) -> str:
        unknown = sorted({name for name in value.split(",") if name} - set(TRACKERS))
        if unknown:
            raise ValueError(f"no tracker is called {', '.join(unknown)}; there are {', '.join(TRACKERS)}")
        return value

    @field_validator("amp", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # a bare off in YAML is false


def read_resources(text: str) -> dict[str, float]:
    """What a worker reserves, by Ray's names, from ``NAME=NUMBER`` with commas between.

    >>> read_resources("CPU=2,GPU=0.5,accelerator_type:A100=0.001")
    {'CPU': 2.0, 'GPU': 0.5, 'accelerator_type:A100': 0.001}
    """
    found = {}
    for item in filter(None, text.split(",")):
        name, _, number = item.rpartition("=")
        if not re.fullmatch(r"\d+(\.\d+)?(e\d+)?", number) or not name or name in found:
            raise ValueError(f"{item!r} is not one of NAME=NUMBER, with commas between: CPU=2,GPU=0.5")
        found[name] = float(number)
    for name in found:
        if name.upper() in ("CPU", "GPU") and not name.isupper():
            raise ValueError(f"Ray knows {name.upper()}, not {name}")
    return found


class EvaluateSettings(Settings):
    """How ``cropreg evaluate`` judges."""

    boxes: str | None = Field(None, description="box dataset to judge on; default: the one the run was trained on")
    split: Literal["train", "val", "calib", "test", "all"] = Field("test", description="which rows; all takes every found row")
    from_: ReadFrom = Field("proxies", description="what is decoded")
    batch_size: int = Field(32, ge=1, description="pictures the model sees at a time")
    bootstrap: int = Field(1000, ge=0, description="resamplings for the interval of the skill")
    seed: int = Field(0, ge=0, description="of the resamplings")


class PredictSettings(Settings):
    """How ``cropreg predict`` crops new pictures."""

    all: bool = Field(False, description="write the doubtful crops too")
    export_: str = Field("", description="write for other programs too, with commas between: csv, coco, label-studio, xmp, pp3, hf")
    min_confidence: float = Field(0.5, ge=0, le=1, description="below this a picture goes to review instead of being written")
    max_risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of the crops written at most this share may lose content; decides instead of --min-confidence",
    )
    tolerance: float | None = Field(
        None, ge=0, lt=0.5, description="with --max-risk: what an edge may lose, share of the picture's side; default 0.005"
    )
    lean: Literal["safe", "even", "greedy"] = Field(
        "even", description="put edges at the outer end of their intervals (safe) or the inner one (greedy)"
    )
    aspect: str | None = Field(
        None, description="width:height of every crop, the nearest of these either way up: 3:2,4:3; keep: the picture's own"
    )
    min_size: str | None = Field(None, description="least size of a crop, px: 1200x800 (standing 800x1200), or 800 for both sides")
    pad: str | None = Field(None, description="room around the predicted box: 20px, or a share of the crop: 0.02 or 2%")
    max_trim: str | None = Field(
        None, description="at most this share of the picture is cut away per edge: 0.2, or left,top,right,bottom"
    )
    jpeg_lossless: bool = Field(
        False, description="cut JPEGs without encoding them anew (needs jpegtran): edges go to the grid of 8 or 16 px"
    )
    jpeg_snap: Literal["out", "in"] = Field(
        "out", description="with --jpeg-lossless: to the grid line outward, or inward where the edge's interval allows"
    )
    quality: int | None = Field(
        None, ge=1, le=100, description="JPEG, WebP or AVIF quality of the crops; default: a JPEG's own, else 90"
    )
    metadata: Literal["all", "safe", "none"] = Field(
        "all",
        description="what a crop keeps of its original's; safe: no GPS, serial numbers, camera's own notes, owner's or author's name",
    )
    max_pixels: int = Field(400_000_000, ge=1, description="refuse pictures with more pixels than this, from their header")
    max_bad_share: float = Field(0.5, ge=0, le=1, description="exit code 6 when a larger share of the pictures fails")
    batch_size: int = Field(16, ge=1, description="pictures a task reads at a time")
    use_gpu: bool = Field(False, description="one GPU a task")
    concurrency: int | None = Field(None, ge=1, description="tasks at a time; default: as many as the cluster has CPUs")
    overwrite: bool = Field(False, description="write again what is there")
    apply_reviews: bool = Field(False, description="write the crops that a person confirmed or corrected with cropreg review")
    watch: bool = Field(False, description="keep looking for new pictures, and crop those that are whole; Ctrl-C ends it")
    watch_interval_s: float = Field(
        5, ge=0.1, description="with --watch: seconds between two looks; a file must not change between them"
    )

    @field_validator("aspect", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        if isinstance(value, int | float):  # YAML reads a bare 3:2 as 182, minutes and seconds
            raise ValueError("put an aspect in quotes in YAML: aspect: '3:2'")
        return value

    @field_validator("min_size", "pad", "max_trim", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """A number, or a list of numbers, as the command line would have it."""
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class ReviewSettings(Settings):
    """How ``cropreg review`` shows what is to be judged."""

    port: int = Field(0, ge=0, le=65535, description="port of the page, on this machine only; 0 takes any that is free")
    browser: bool = Field(True, description="open the page in a browser")
    read_only: bool = Field(False, description="look, but decide nothing")
    run: str | None = Field(None, description="a trained run: its boxes become suggestions, labels it contradicts are shown")
    max_pixels: int = Field(400_000_000, ge=1, description="refuse pictures with more pixels than this, from their header")


class SubmitSettings(Settings):
    """How ``cropreg submit`` sends a verb to a cluster."""

    shared_path: tuple[Path, ...] = Field(
        (), description="folder on a disk that all nodes mount at the same place; may be given again"
    )
    working_dir: Path | None = Field(
        None, description="folder whose code the job runs; default: the checkout cropreg runs from, else nothing is uploaded"
    )
    runtime_env: Path | None = Field(
        None, description="YAML file of the job's environment; default: runtime_env.yaml of the working dir"
    )
    submission_id: str | None = Field(None, min_length=1, description="name of the job; default: one that is made up")
    no_wait: bool = Field(False, description="end when the job is accepted, instead of following it")


class ExportSettings(Settings):
    """How ``cropreg export`` writes a model."""

    format: Literal["onnx"] = Field("onnx", description="what the file is")
    overwrite: bool = Field(False, description="replace a file that is there")


class DoorSettings(Settings):
    """What every verb takes beside its own settings."""

    config: Path | None = Field(None, description="YAML file of settings; flag > CROPREG_* variable > file > default")
    address: str | None = Field(None, description="Ray cluster to use; default: the job's own, or one started here")
    dry_run: bool = Field(False, description="say what would be done and how much; read nothing heavy, write nothing")
    json_: bool = Field(False, description="print the summary as one JSON object on standard output")
    verbose: bool = Field(False, description="tell more")
    quiet: bool = Field(False, description="tell warnings and errors only")

    @field_validator("config")
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"{value} is not there")
        return value
