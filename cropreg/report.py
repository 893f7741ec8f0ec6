"""Pictures and a page about a run, for a person to look at: curves, contact sheets, and one HTML file that opens offline."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cropreg.boxes import EDGES, denormalise
from cropreg.images import encode_jpeg

TRUTH_RGB, PREDICTED_RGB = (20, 170, 60), (235, 60, 30)
_CELL, _GAP, _CAPTION = 240, 8, 18


@dataclass(frozen=True)
class Example:
    """One picture of a sheet: (H, W, 3) RGB, its true and its predicted box in shares, where known, and a line of text."""

    picture: NDArray[np.uint8]
    true_norm: NDArray[np.float64] | None
    predicted_norm: NDArray[np.float64] | None
    caption: str


def curves_png(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Plots the rows of ``metrics.csv``: losses on the left, IoU and learning rate on the right; the best epoch marked."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] + 1 for row in rows]
    best = min(rows, key=lambda row: row["val_loss"])["epoch"] + 1
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in rows], label="training")
    left.plot(epochs, [row["val_loss"] for row in rows], label="validation")
    left.set(title="loss", xlabel="epoch", yscale="log")
    right.plot(epochs, [row["val_iou"] for row in rows], color="tab:green", label="validation IoU")
    right.set(title="IoU and learning rate", xlabel="epoch", ylim=(None, 1))
    rate = right.twinx()
    rate.plot(epochs, [row["learning_rate"] for row in rows], color="grey", linestyle=":", label="learning rate")
    rate.set(yscale="log")
    for axes in (left, right):
        axes.axvline(best, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def learning_png(pairs: Sequence[int], iou: Sequence[float], law: Sequence[float], words: str) -> bytes:
    """Plots mean IoU over the number of training pairs, and the power law (a, b, c of :mod:`cropreg.curve`) to twice their number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    a, b, c = law
    x = np.geomspace(pairs[0], 2 * pairs[-1], 100)
    axes.plot(x, a - b * (x / pairs[-1]) ** -c, color="grey", linestyle=":", label="power law")
    axes.plot(pairs, iou, "o", label="trained")
    ticks = [*pairs, 2 * pairs[-1]]
    axes.set(xscale="log", xlabel="training pairs", ylabel="mean IoU on the test split", xticks=ticks, xticklabels=map(str, ticks))
    axes.set_xticks([], minor=True)
    axes.set_title("\n".join(textwrap.wrap(words, 90)), fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def doubt_png(doubt: Mapping[str, Any], reliability: Sequence[Mapping[str, Any]]) -> bytes:
    """Plots what :func:`cropreg.doubt.risk_coverage` and :func:`cropreg.doubt.reliability` return, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(doubt["curve"]["share"], doubt["curve"]["risk"], marker=".", label="least doubtful first")
    left.axhline(doubt["aurc_blind"], color="grey", linestyle=":", label="if doubt said nothing")
    left.set(
        title="what doubt leaves wrong", xlabel="share of the pictures written", ylabel="mean 1 - IoU of these", xlim=(0, 1.02)
    )
    left.set_ylim(0, 1.25 * max(doubt["aurc_blind"], *doubt["curve"]["risk"], 1e-6))
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as it should be")
    if reliability:
        said, good = ([row[name] for row in reliability] for name in ("said", "good"))
        right.plot(said, good, marker="o", linestyle="", label="pictures of like confidence")
        for row in reliability:
            right.annotate(f" {row['n']}", (row["said"], row["good"]), va="top")
    right.set(title="confidence", xlabel="said", ylabel="share that came true", xlim=(0, 1.08), ylim=(0, 1.05))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def shifts_png(shift: NDArray[np.float64]) -> bytes:
    """Histograms of how far outward the four edges lie (N, 4), shares of the side; what is beyond the outermost bars counts in them."""
    from matplotlib.figure import Figure

    percent = 100 * shift
    reach = max(1.0, float(np.percentile(np.abs(percent), 98)))
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, 4, sharey=True)):
        axes.hist(np.clip(percent[:, i], -reach, reach), bins=np.linspace(-reach, reach, 31))
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set(title=EDGES[i], xlabel="% of the side, outward")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def sheet(examples: Sequence[Example], columns: int) -> NDArray[np.uint8]:
    """A contact sheet, RGB: each original with the true box (green) and the predicted one (red), then both crops."""
    canvas = _grid([_cell(example) for example in examples], columns)
    legend = "each: original with the box by hand (green) and by cropreg (red); the crop by hand; the crop by cropreg"
    _write(canvas, legend, _GAP, canvas.shape[0] - _GAP + 2)
    return canvas


def sheet_jpeg(examples: Sequence[Example], columns: int = 2) -> bytes:
    """:func:`sheet`, encoded."""
    return encode_jpeg(sheet(examples, columns), 88)


def sheet_png(examples: Sequence[Example], columns: int = 2) -> bytes:
    """:func:`sheet`, encoded without loss."""
    done, buffer = cv2.imencode(".png", cv2.cvtColor(sheet(examples, columns), cv2.COLOR_RGB2BGR))
    assert done, "OpenCV encodes every uint8 array"
    return buffer.tobytes()


def mosaic_jpeg(examples: Sequence[Example], columns: int = 6) -> bytes:
    """The originals alone, with their boxes drawn in."""
    cells = []
    for example in examples:
        cell = np.full((_CELL + _CAPTION, _CELL, 3), 245, np.uint8)
        _place(cell, _drawn(example), 0)
        _write(cell, example.caption, 4, _CELL + _CAPTION - 5)
        cells.append(cell)
    return encode_jpeg(_grid(cells, columns), 88)


def histograms_png(margins: NDArray[np.float64], scores: NDArray[np.float64]) -> bytes:
    """Histograms of the four margins (N, 4) and of the matcher's scores (M,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    axes = figure.subplots(1, 5)
    for i, edge in enumerate(EDGES):
        axes[i].hist(margins[:, i], bins=30)
        axes[i].axvline(float(np.median(margins[:, i])), color="tab:red")
        axes[i].set(title=f"{edge} margin", xlabel="share of the side")
    axes[4].hist(scores, bins=30)
    axes[4].set(title="score", xlabel="NCC")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def page(title: str, evaluation: Mapping[str, Any], pictures: Mapping[str, tuple[str, bytes]]) -> bytes:
    """The report: one HTML file with everything in it and nothing to load.

    Args:
        title: heading, plain text.
        evaluation: as :func:`cropreg.evaluation.evaluate` returns it.
        pictures: caption to (media type, bytes).
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    images = {name: f"data:{kind};base64,{base64.b64encode(data).decode()}" for name, (kind, data) in pictures.items()}
    rows = {"model": evaluation["model"], **evaluation["baselines"]}
    if "neighbour" in evaluation:
        rows["most alike"] = evaluation["neighbour"]
    columns = ["iou_mean", "iou_median", "iou_at_75", "iou_at_90", "iou_at_95", "bde_mean", "over_crop", "under_crop"]
    half = _risk_at(evaluation["doubt"]["curve"], 0.5)
    return (
        environment.from_string(_PAGE)
        .render(title=title, e=evaluation, rows=rows, columns=columns, edges=EDGES, images=images, half=half)
        .encode()
    )


def _risk_at(curve: Mapping[str, Sequence[float]], share: float) -> float:
    """The risk of a risk-coverage curve where it is nearest to that share of the pictures."""
    return min(zip(curve["share"], curve["risk"], strict=True), key=lambda point: abs(point[0] - share))[1]


def _grid(cells: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Cells of one size in rows, with room for a line of text below."""
    height, width = cells[0].shape[:2]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    canvas = np.full((rows * (height + _GAP) + _GAP + _CAPTION, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        y, x = _GAP + (i // columns) * (height + _GAP), _GAP + (i % columns) * (width + _GAP)
        canvas[y : y + height, x : x + width] = cell
    return canvas


def _cell(example: Example) -> NDArray[np.uint8]:
    """Original with boxes, the crop by hand and the predicted crop, side by side, with the caption below."""
    height, width = example.picture.shape[:2]
    scale = _fit(example.picture)[1]
    cell = np.full((_CELL + _CAPTION, 3 * _CELL + 2 * _GAP, 3), 245, np.uint8)
    _place(cell, _drawn(example), 0)
    for column, box_norm in ((1, example.true_norm), (2, example.predicted_norm)):
        if box_norm is not None:
            x1, y1, x2, y2 = denormalise(box_norm, (width, height)).round().astype(int)
            _place(cell, _fit(example.picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)], scale)[0], column)
    _write(cell, example.caption, 4, _CELL + _CAPTION - 5)
    return cell


def _drawn(example: Example) -> NDArray[np.uint8]:
    """The original in the size of a cell, with its boxes drawn in."""
    drawn = _fit(example.picture)[0].copy()
    for box_norm, color in ((example.true_norm, TRUTH_RGB), (example.predicted_norm, PREDICTED_RGB)):
        if box_norm is not None:
            x1, y1, x2, y2 = denormalise(box_norm, (drawn.shape[1], drawn.shape[0])).round().astype(int)
            cv2.rectangle(drawn, (int(x1), int(y1)), (int(x2) - 1, int(y2) - 1), color, 2)
    return drawn


def _place(cell: NDArray[np.uint8], image: NDArray[np.uint8], column: int) -> None:
    """Puts an image in the middle of a column of a cell."""
    x, y = column * (_CELL + _GAP) + (_CELL - image.shape[1]) // 2, (_CELL - image.shape[0]) // 2
    cell[y : y + image.shape[0], x : x + image.shape[1]] = image


def _fit(picture: NDArray[np.uint8], scale: float | None = None) -> tuple[NDArray[np.uint8], float]:
    """Scales a picture into a cell; crops keep the scale of their original, so that sizes can be compared."""
    height, width = picture.shape[:2]
    largest = min(_CELL / width, _CELL / height)
    scale = largest if scale is None else min(scale, largest)
    size_wh = (max(1, min(_CELL, round(width * scale))), max(1, min(_CELL, round(height * scale))))
    return cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(np.uint8), scale


def _write(canvas: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    cv2.putText(canvas, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
 :root { color-scheme: light dark }
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
 table { border-collapse: collapse } th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8886 }
 th:first-child, td:first-child { text-align: left; white-space: nowrap } tr.model td { font-weight: 600 }
 img { max-width: 100%; background: #fff }
 .wide { overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1>
<p>Mean IoU <b>{{ "%.3f" % e.model.iou_mean }}</b> on {{ e.n }} pictures ({{ e.split }}).
 The best constant box ({{ e.best_baseline.replace("_", " ") }}) reaches {{ "%.3f" % e.baselines[e.best_baseline].iou_mean }}.
 Skill {{ "%.3f" % e.skill }}{% if e.skill_ci %}, 95% interval {{ "%.3f" % e.skill_ci[0] }} to {{ "%.3f" % e.skill_ci[1] }}{% endif %}:
 the share of what the constant box leaves undone that the model does; 0 is no better, 1 is perfect.</p>
<div class="wide"><table><thead><tr><th></th>{% for c in columns %}<th>{{ c.replace("_", " ") }}</th>{% endfor %}</tr></thead><tbody>
{% for name, values in rows.items() %}
<tr{% if name == "model" %} class="model"{% endif %}><td>{{ name.replace("_", " ") }}</td>
{% for c in columns %}<td>{{ "%.3f" % values[c] }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p>IoU is the overlap of two boxes, 1 when they are the same; "iou at 90" is the share of pictures with at least .90.
 BDE is the mean error of the four edges, as a share of the picture's width or height. "over crop" is the share of pictures of which some
 edge cuts away more than 0.5% of a side that the person kept, "under crop" that of which some edge leaves that much too much; both may be
 true of one.{% if e.neighbour %} "most alike" copies the crop of the training picture that looks most like each.{% endif %}</p>
<h2>Edge by edge</h2>
<div class="wide"><table><thead><tr><th></th><th>mean error</th><th>mean outward</th><th>best constant's error</th>
<th>correlation</th><th>variance ratio</th>
{% if "error_left_px" in e.model %}<th>mean error, px</th><th>mean outward, px</th>{% endif %}</tr></thead><tbody>
{% for edge in edges %}<tr><td>{{ edge }}</td><td>{{ "%.2f%%" % (100 * e.model["error_" ~ edge]) }}</td>
<td>{{ "%+.2f%%" % (100 * e.model["shift_" ~ edge]) }}</td><td>{{ "%.2f%%" % (100 * e.baselines[e.best_baseline]["error_" ~ edge]) }}</td>
<td>{{ "%.3f" % e.edges.correlation[edge] }}</td><td>{{ "%.3f" % e.edges.variance_ratio[edge] }}</td>
{% if "error_left_px" in e.model %}<td>{{ "%.1f" % e.model["error_" ~ edge ~ "_px"] }}</td>
<td>{{ "%+.1f" % e.model["shift_" ~ edge ~ "_px"] }}</td>{% endif %}</tr>
{% endfor %}
</tbody></table></div>
<p>Outward has a sign: where it is below nought the edge lies too far inside, and crops lose content; near nought it errs to both sides
 alike. Correlation and variance ratio are those of predicted and true margins: of an edge that is always put at its average both are 0.</p>
{% if e.half_size %}<p>The answer for a copy of half the size differs by {{ "%.2f%%" % (100 * e.half_size.moved_mean) }} of a side, by
 {{ "%.2f%%" % (100 * e.half_size.moved_95) }} for one edge in twenty ({{ e.half_size.n }} pictures).</p>{% endif %}
<h2>How sure it is</h2>
{% if e.intervals %}<p>Intervals: promised to hold each edge with {{ "%.0f" % (100 * e.intervals.promised) }}%,
 held {{ "%.1f" % (100 * e.intervals.held) }}%
 ({% for edge, held in e.intervals.held_by_edge.items() %}{{ edge }} {{ "%.1f" % (100 * held) }}%{{ ", " if not loop.last }}{% endfor %});
 on average {{ "%.3f" % e.intervals.width_mean }} of a side wide.</p>{% endif %}
<p>Doubt: over the least doubtful half of the pictures the mean of 1 - IoU is {{ "%.4f" % half }}, over all it is
 {{ "%.4f" % e.doubt.aurc_blind }}. The area under the curve is {{ "%.4f" % e.doubt.aurc }}; a doubt that knew the truth would have
 {{ "%.4f" % e.doubt.aurc_best }}, one that says nothing {{ "%.4f" % e.doubt.aurc_blind }}.</p>
{% if e.reliability %}
<div class="wide"><table>
<thead><tr><th>confidence</th><th>pictures</th><th>said</th><th>came true</th></tr></thead><tbody>
{% for row in e.reliability %}
<tr><td>{{ "%.2f" % row.low }} to {{ "%.2f" % row.high }}</td><td>{{ row.n }}</td>
<td>{{ "%.3f" % row.said }}</td><td>{{ "%.3f" % row.good }}</td></tr>
{% endfor %}
</tbody></table></div>
<p>Confidence is the said probability of an IoU of at least .90; it came true for that share.</p>{% else %}
<p>The run had too few pairs in its calib split to learn a confidence.</p>{% endif %}
{% if e.unlike is defined %}<p>{{ "%.1f" % (100 * e.unlike) }}% of these pictures look unlike those that the model learned from, and would
 go to review.</p>
{% endif %}
{% for name, source in images.items() %}<h2>{{ name }}</h2><p><img alt="{{ name }}" src="{{ source }}"></p>
{% endfor %}
</body></html>
"""
