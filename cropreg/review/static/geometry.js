// Boxes and turns.  A box is [x1, y1, x2, y2] in pixels of the upright original; its angle turns it clockwise about its own centre.

export const EDGES = ["left", "top", "right", "bottom"];
export const HANDLES = ["left top", "top", "right top", "right", "right bottom", "bottom", "left bottom", "left"];

export function axes(angle) {
  const turn = (angle * Math.PI) / 180;
  return { ux: Math.cos(turn), uy: Math.sin(turn), vx: -Math.sin(turn), vy: Math.cos(turn) };
}

export const center = ([x1, y1, x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];

// A point as seen from the box: along its own axes, from its own centre.
export function toLocal(box, angle, x, y) {
  const [cx, cy] = center(box);
  const { ux, uy, vx, vy } = axes(angle);
  return [(x - cx) * ux + (y - cy) * uy, (x - cx) * vx + (y - cy) * vy];
}

export function toPicture(box, angle, a, b) {
  const [cx, cy] = center(box);
  const { ux, uy, vx, vy } = axes(angle);
  return [cx + a * ux + b * vx, cy + a * uy + b * vy];
}

export function corners(box, angle) {
  const w = (box[2] - box[0]) / 2;
  const h = (box[3] - box[1]) / 2;
  return [[-w, -h], [w, -h], [w, h], [-w, h]].map(([a, b]) => toPicture(box, angle, a, b));
}

// Where a handle sits, in pixels of the picture.
export function handleAt(box, angle, handle) {
  const w = (box[2] - box[0]) / 2;
  const h = (box[3] - box[1]) / 2;
  const a = handle.includes("left") ? -w : handle.includes("right") ? w : 0;
  const b = handle.includes("top") ? -h : handle.includes("bottom") ? h : 0;
  return toPicture(box, angle, a, b);
}

// The box with the edges of a handle at a point, the other edges where they were.
export function withHandleAt(box, angle, handle, x, y, size) {
  if (!angle) {
    const next = [...box];
    const px = clamp(Math.round(x), 0, size[0]);
    const py = clamp(Math.round(y), 0, size[1]);
    if (handle.includes("left")) next[0] = Math.min(px, box[2] - 1);
    if (handle.includes("right")) next[2] = Math.max(px, box[0] + 1);
    if (handle.includes("top")) next[1] = Math.min(py, box[3] - 1);
    if (handle.includes("bottom")) next[3] = Math.max(py, box[1] + 1);
    return next;
  }
  const [a, b] = toLocal(box, angle, x, y);
  return withLocalEdges(box, angle, handle, a, b);
}

function withLocalEdges(box, angle, handle, a, b) {
  let right = (box[2] - box[0]) / 2;
  let bottom = (box[3] - box[1]) / 2;
  let left = -right;
  let top = -bottom;
  if (handle.includes("left")) left = Math.min(a, right - 1);
  if (handle.includes("right")) right = Math.max(a, left + 1);
  if (handle.includes("top")) top = Math.min(b, bottom - 1);
  if (handle.includes("bottom")) bottom = Math.max(b, top + 1);
  const [cx, cy] = toPicture(box, angle, (left + right) / 2, (top + bottom) / 2);
  const w = (right - left) / 2;
  const h = (bottom - top) / 2;
  return [cx - w, cy - h, cx + w, cy + h];
}

// The box with one edge moved outwards or inwards along the screen's axes, `by` pixels to the right or down.
export function withEdgeMoved(box, angle, edge, by, size) {
  const at = EDGES.indexOf(edge);
  if (!angle) {
    const next = [...box];
    const limit = [[0, box[2] - 1], [0, box[3] - 1], [box[0] + 1, size[0]], [box[1] + 1, size[1]]][at];
    next[at] = clamp(box[at] + by, ...limit);
    return next;
  }
  const w = (box[2] - box[0]) / 2;
  const h = (box[3] - box[1]) / 2;
  const a = (edge === "left" ? -w : w) + by;
  const b = (edge === "top" ? -h : h) + by;
  return withLocalEdges(box, angle, edge, a, b);
}

export function moved(box, angle, dx, dy, size) {
  if (!angle) {
    dx = clamp(dx, -box[0], size[0] - box[2]);
    dy = clamp(dy, -box[1], size[1] - box[3]);
  } else {
    const [cx, cy] = center(box);
    dx = clamp(dx, -cx, size[0] - cx);
    dy = clamp(dy, -cy, size[1] - cy);
  }
  return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
}

// A box that is no longer turned must lie inside the picture.
export function inside(box, size) {
  const x1 = clamp(box[0], 0, size[0] - 1);
  const y1 = clamp(box[1], 0, size[1] - 1);
  return [x1, y1, clamp(box[2], x1 + 1, size[0]), clamp(box[3], y1 + 1, size[1])];
}

export function iou(a, b) {
  const w = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const h = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (w * h) / (area(a) + area(b) - w * h);
}

export const same = (a, b) => !!a && !!b && a.every((v, i) => Math.abs(v - b[i]) < 1e-6);
export const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
