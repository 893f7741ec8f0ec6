// The original on a canvas: what lies outside the box dimmed, the box with its handles, and the hands on it.

import { EDGES, HANDLES, axes, center, clamp, corners, handleAt, moved, toLocal, withEdgeMoved, withHandleAt } from "./geometry.js";

const PADDING = 44; // css px around the picture, so that handles on its border can be grasped and the knob to turn be seen
const MAX_PIECE = 2048; // px; what the server cuts out of the original at most
const KNOB = 26; // css px from the top edge to the knob that turns
const MAX_SCALE = 16;

export class Stage {
  // `changed` is called with every change of the box, `settled` when a hand has let go; `piece` fetches a part of the original at 1:1.
  constructor(canvas, { changed, edgeChanged, viewChanged, piece }) {
    Object.assign(this, { canvas, changed, edgeChanged, viewChanged, fetchPiece: piece });
    this.context = canvas.getContext("2d");
    this.item = null;
    this.box = null;
    this.angle = 0;
    this.edge = null;
    this.preview = null; // a box to be shown dashed
    this.overlay = null; // the person's crop, laid over the box
    this.scale = 1; // css px per px of the original
    this.x = 0; // css px of the original's corner
    this.y = 0;
    this.fitted = true;
    this.pointers = new Map();
    this.grip = null;
    this.sharp = null; // { x, y, w, h, image } a part of the original at 1:1
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.fit());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(item, image, box, angle) {
    const other = this.item?.id !== item.id;
    this.item = item;
    this.image = image;
    if (!other) return this.draw();
    this.box = box ? [...box] : null;
    this.angle = angle;
    this.edge = null;
    this.preview = null;
    this.overlay = null;
    this.grip = null;
    this.sharp = null;
    this.fit();
  }

  setBox(box, angle) {
    this.box = box ? [...box] : null;
    this.angle = angle;
    this.changed();
    this.draw();
  }

  clear() {
    this.item = null;
    this.draw();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    if (this.fitted) this.fit();
    else this.draw();
  }

  fit() {
    if (!this.item) return this.draw();
    const [w, h] = this.item.size;
    const { clientWidth, clientHeight } = this.canvas;
    const room = Math.min(PADDING, clientWidth / 10, clientHeight / 10);
    const above = Math.max(room, KNOB + 8); // in a small window, too, the knob is seen
    this.scale = Math.min((clientWidth - 2 * room) / w, (clientHeight - room - above) / h);
    this.x = (clientWidth - w * this.scale) / 2;
    this.y = above + (clientHeight - room - above - h * this.scale) / 2;
    this.fitted = true;
    this.look();
  }

  // Looks at the middle of the selected edge, one pixel of the original on one of the screen; called again, at the whole.
  lookAtEdge() {
    if (!this.item || !this.box) return;
    if (!this.fitted) return this.fit();
    if (!this.edge) this.select("left");
    this.centerOnEdge();
  }

  centerOnEdge() {
    const [px, py] = handleAt(this.box, this.angle, this.edge);
    this.scale = 1 / (devicePixelRatio || 1);
    this.x = Math.round(this.canvas.clientWidth / 2 - px * this.scale);
    this.y = Math.round(this.canvas.clientHeight / 2 - py * this.scale);
    this.fitted = false;
    this.look();
  }

  select(edge) {
    this.edge = edge;
    this.edgeChanged();
    if (edge && !this.fitted) this.centerOnEdge();
    else this.draw();
  }

  cycle(step) {
    if (!this.box) return;
    const at = EDGES.indexOf(this.edge);
    this.select(EDGES[at < 0 ? (step > 0 ? 0 : 3) : (at + step + 4) % 4]);
  }

  nudge(dx, dy) {
    if (!this.box) return;
    let next;
    if (!this.edge) next = moved(this.box, this.angle, dx, dy, this.item.size);
    else {
      const by = this.edge === "left" || this.edge === "right" ? dx : dy;
      if (!by) return;
      next = withEdgeMoved(this.box, this.angle, this.edge, by, this.item.size);
    }
    this.setBox(next, this.angle);
  }

  // A look has changed: says so, draws, and asks for a sharp piece when it stays.
  look() {
    this.viewChanged();
    this.draw();
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.sharpen(), 80);
  }

  async sharpen() {
    const item = this.item;
    if (!item || !this.image) return;
    const ratio = devicePixelRatio || 1;
    const fine = Math.min(this.scale * ratio * item.size[0], item.size[0]); // px across that the screen can show of it
    if (fine <= this.image.width * 1.05) return;
    const x = clamp(Math.floor(-this.x / this.scale), 0, item.size[0]);
    const y = clamp(Math.floor(-this.y / this.scale), 0, item.size[1]);
    const w = Math.ceil(Math.min(this.canvas.clientWidth / this.scale + 1, item.size[0] - x));
    const h = Math.ceil(Math.min(this.canvas.clientHeight / this.scale + 1, item.size[1] - y));
    if (w < 1 || h < 1 || w > MAX_PIECE || h > MAX_PIECE) return;
    const s = this.sharp;
    if (s && s.x <= x && s.y <= y && s.x + s.w >= x + w && s.y + s.h >= y + h) return;
    const wanted = { x, y, w, h };
    this.wanted = wanted;
    try {
      const image = await this.fetchPiece(item.id, wanted);
      if (this.item === item && this.wanted === wanted) {
        this.sharp = { ...wanted, image };
        this.canvas.dataset.sharp = item.id;
        this.draw();
      }
    } catch {
      // the coarse picture stays; its own error has been told
    }
  }

  zoom(factor, atX, atY) {
    const least = Math.min(this.canvas.clientWidth / this.item.size[0], this.canvas.clientHeight / this.item.size[1]) * 0.5;
    const scale = clamp(this.scale * factor, least, MAX_SCALE);
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.look();
  }

  toPx(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const sx = event.clientX - bounds.left;
    const sy = event.clientY - bounds.top;
    return { sx, sy, px: (sx - this.x) / this.scale, py: (sy - this.y) / this.scale };
  }

  onScreen([px, py]) {
    return [this.x + px * this.scale, this.y + py * this.scale];
  }

  knob() {
    const [tx, ty] = this.onScreen(handleAt(this.box, this.angle, "top"));
    const { vx, vy } = axes(this.angle);
    return [tx - vx * KNOB, ty - vy * KNOB];
  }

  // What is under a pointer: a handle, the knob, an edge, the box, or nothing.
  under({ sx, sy, px, py }, touch) {
    if (!this.box) return null;
    const near = touch ? 24 : 11;
    const [kx, ky] = this.knob();
    if (Math.hypot(sx - kx, sy - ky) <= near) return { kind: "turn" };
    let best = null;
    for (const handle of HANDLES) {
      const [hx, hy] = this.onScreen(handleAt(this.box, this.angle, handle));
      const far = Math.hypot(sx - hx, sy - hy);
      if (far <= near && (!best || far < best.far)) best = { kind: "handle", handle, far };
    }
    if (best) return best;
    const [a, b] = toLocal(this.box, this.angle, px, py);
    const w = (this.box[2] - this.box[0]) / 2;
    const h = (this.box[3] - this.box[1]) / 2;
    const reach = (touch ? 16 : 6) / this.scale;
    if (Math.abs(b) <= h && Math.abs(a + w) <= reach) return { kind: "handle", handle: "left" };
    if (Math.abs(b) <= h && Math.abs(a - w) <= reach) return { kind: "handle", handle: "right" };
    if (Math.abs(a) <= w && Math.abs(b + h) <= reach) return { kind: "handle", handle: "top" };
    if (Math.abs(a) <= w && Math.abs(b - h) <= reach) return { kind: "handle", handle: "bottom" };
    return Math.abs(a) <= w && Math.abs(b) <= h ? { kind: "box" } : null;
  }

  down(event) {
    if (!this.item || event.button > 1) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.toPx(event);
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size === 2) {
      this.grip = { kind: "pinch" };
      return;
    }
    const under = event.button === 1 ? null : this.under(at, event.pointerType === "touch");
    const drawNew = event.button === 0 && (event.shiftKey || !this.box);
    this.grip = { ...(drawNew ? { kind: "new" } : (under ?? { kind: "pan" })), at, box: this.box && [...this.box], angle: this.angle };
    if (this.grip.kind === "handle") {
      const [hx, hy] = handleAt(this.box, this.angle, under.handle);
      this.grip.off = [hx - at.px, hy - at.py]; // a finger is not exact: the edge must not jump to it
    }
    if (under?.kind === "handle" && !drawNew && EDGES.includes(under.handle) && this.edge !== under.handle) {
      this.edge = under.handle;
      this.edgeChanged();
    }
    event.preventDefault();
  }

  move(event) {
    if (!this.item) return;
    const at = this.toPx(event);
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.grip) {
      this.canvas.style.cursor = cursorOf(this.under(at, false), this.angle, this.box);
      return;
    }
    const grip = this.grip;
    this.pointers.set(event.pointerId, at);
    if (grip.kind === "pinch") {
      const other = [...this.pointers.entries()].find(([id]) => id !== event.pointerId)?.[1];
      if (!other) return;
      const spread = (p) => Math.hypot(p.sx - other.sx, p.sy - other.sy) || 1;
      this.x += (at.sx - before.sx) / 2;
      this.y += (at.sy - before.sy) / 2;
      this.zoom(spread(at) / spread(before), (at.sx + other.sx) / 2, (at.sy + other.sy) / 2);
    } else if (grip.kind === "pan") {
      this.x += at.sx - before.sx;
      this.y += at.sy - before.sy;
      this.fitted = false;
      this.look();
    } else if (grip.kind === "handle") {
      this.setBox(withHandleAt(grip.box, grip.angle, grip.handle, at.px + grip.off[0], at.py + grip.off[1], this.item.size), grip.angle);
    } else if (grip.kind === "box") {
      const [dx, dy] = [at.px - grip.at.px, at.py - grip.at.py].map(Math.round);
      if (dx || dy || grip.moved) {
        grip.moved = true;
        this.setBox(moved(grip.box, grip.angle, dx, dy, this.item.size), grip.angle);
      }
    } else if (grip.kind === "turn") {
      const [cx, cy] = center(grip.box);
      const angle = (Math.atan2(at.py - cy, at.px - cx) * 180) / Math.PI + 90;
      this.setBox(grip.box, Math.round((angle > 180 ? angle - 360 : angle) * 10) / 10);
    } else if (grip.kind === "new") {
      const [w, h] = this.item.size;
      const [ax, bx] = [grip.at.px, at.px].map((v) => clamp(Math.round(v), 0, w)).sort((a, b) => a - b);
      const [ay, by] = [grip.at.py, at.py].map((v) => clamp(Math.round(v), 0, h)).sort((a, b) => a - b);
      if (bx - ax >= 2 && by - ay >= 2) this.setBox([ax, ay, bx, by], 0);
    }
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size === 0) this.grip = null;
    else if (this.grip?.kind === "pinch") this.grip = { kind: "pan" };
  }

  wheel(event) {
    if (!this.item) return;
    event.preventDefault();
    const at = this.toPx(event);
    const step = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
    this.zoom(Math.exp(-clamp(step, -200, 200) * 0.0025), at.sx, at.sy);
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const c = this.context;
    const ratio = devicePixelRatio || 1;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.item) return;
    const [w, h] = this.item.size;
    c.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    c.imageSmoothingEnabled = true;
    c.imageSmoothingQuality = "high";
    if (this.image) c.drawImage(this.image, 0, 0, w, h);
    if (this.sharp && !this.fitted) {
      c.imageSmoothingEnabled = this.scale * ratio < 3; // closer, pixels may be seen as such
      c.drawImage(this.sharp.image, this.sharp.x, this.sharp.y, this.sharp.w, this.sharp.h);
    }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.strokeStyle = "rgb(128 132 140 / 0.6)"; // where a dark picture ends on a dark page
    c.lineWidth = 1;
    c.strokeRect(this.x - 0.5, this.y - 0.5, w * this.scale + 1, h * this.scale + 1);
    if (this.box) this.paintBox(c, w, h);
    if (this.preview) {
      this.trace(c, this.preview.box, this.preview.angle);
      this.stroke(c, [6, 4], "#ffd24a", 2);
    }
    this.canvas.dataset.painted = this.item.id;
  }

  paintBox(c, w, h) {
    if (this.overlay) {
      const [cx, cy] = this.onScreen(center(this.box));
      const half = [((this.box[2] - this.box[0]) * this.scale) / 2, ((this.box[3] - this.box[1]) * this.scale) / 2];
      c.save();
      c.translate(cx, cy);
      c.rotate((this.angle * Math.PI) / 180);
      c.drawImage(this.overlay, -half[0], -half[1], 2 * half[0], 2 * half[1]);
      c.restore();
    }
    c.beginPath();
    c.rect(this.x, this.y, w * this.scale, h * this.scale);
    this.path(c, this.box, this.angle);
    c.fillStyle = "rgb(8 10 14 / 0.58)";
    c.fill("evenodd");
    if (this.item.bands) this.paintBands(c);
    this.trace(c, this.box, this.angle);
    this.stroke(c, [], "#fff", 1.5);
    if (this.edge) {
      const all = corners(this.box, this.angle).map((p) => this.onScreen(p));
      const at = { left: [3, 0], top: [0, 1], right: [1, 2], bottom: [2, 3] }[this.edge];
      c.beginPath();
      c.moveTo(...all[at[0]]);
      c.lineTo(...all[at[1]]);
      this.stroke(c, [], "#4da3ff", 3);
    }
    this.paintHandles(c);
  }

  paintBands(c) {
    const [x1, y1, x2, y2] = this.box;
    const bands = this.item.bands;
    c.fillStyle = "rgb(92 176 255 / 0.13)";
    c.strokeStyle = "rgb(140 200 255 / 0.6)";
    c.lineWidth = 1;
    c.setLineDash([2, 3]);
    for (const [n, [low, high]] of bands.entries()) {
      const [ax, ay] = this.onScreen(n % 2 ? [x1, low] : [low, y1]);
      const [bx, by] = this.onScreen(n % 2 ? [x2, high] : [high, y2]);
      c.fillRect(ax, ay, bx - ax, by - ay);
      c.strokeRect(ax + 0.5, ay + 0.5, bx - ax - 1, by - ay - 1);
    }
    c.setLineDash([]);
  }

  paintHandles(c) {
    const [kx, ky] = this.knob();
    const [tx, ty] = this.onScreen(handleAt(this.box, this.angle, "top"));
    c.beginPath();
    c.moveTo(tx, ty);
    c.lineTo(kx, ky);
    this.stroke(c, [], "#fff", 1);
    c.beginPath();
    c.arc(kx, ky, 5, 0, 2 * Math.PI);
    this.handle(c, false);
    for (const name of HANDLES) {
      const [x, y] = this.onScreen(handleAt(this.box, this.angle, name));
      c.save();
      c.translate(x, y);
      c.rotate((this.angle * Math.PI) / 180);
      c.beginPath();
      if (name.includes(" ")) c.rect(-5, -5, 10, 10);
      else if (name === "left" || name === "right") c.rect(-3.5, -9, 7, 18);
      else c.rect(-9, -3.5, 18, 7);
      this.handle(c, name === this.edge);
      c.restore();
    }
  }

  handle(c, on) {
    c.fillStyle = on ? "#4da3ff" : "#fff";
    c.strokeStyle = "rgb(0 0 0 / 0.65)";
    c.lineWidth = 1;
    c.fill();
    c.stroke();
  }

  path(c, box, angle) {
    corners(box, angle).forEach((p, i) => (i ? c.lineTo(...this.onScreen(p)) : c.moveTo(...this.onScreen(p))));
    c.closePath();
  }

  trace(c, box, angle) {
    c.beginPath();
    this.path(c, box, angle);
  }

  // A line that is seen on dark and on light: its own colour over a dark seam.
  stroke(c, dash, color, width) {
    c.setLineDash(dash);
    c.strokeStyle = "rgb(0 0 0 / 0.55)";
    c.lineWidth = width + 2;
    c.stroke();
    c.strokeStyle = color;
    c.lineWidth = width;
    c.stroke();
    c.setLineDash([]);
  }
}

function cursorOf(under, angle, box) {
  if (!box) return "crosshair";
  if (!under) return "grab";
  if (under.kind === "box") return "move";
  if (under.kind === "turn") return "alias";
  const outward = { right: 0, "right bottom": 45, bottom: 90, "left bottom": 135, left: 180, "left top": 225, top: 270, "right top": 315 };
  const step = Math.round(((outward[under.handle] + angle) % 180) / 45);
  return ["ew-resize", "nwse-resize", "ns-resize", "nesw-resize", "ew-resize"][(step + 4) % 4];
}

// What a box holds, cut out of a picture and turned upright, fitted into a canvas; returns whether there was anything.
export function drawHeld(canvas, image, size, box, angle) {
  const fitted = fit(canvas, box ? box[2] - box[0] : 1, box ? box[3] - box[1] : 1);
  const { c, scale, w, h } = fitted;
  if (!image || !box) return false;
  const [cx, cy] = center(box);
  c.save();
  c.translate(canvas.width / 2, canvas.height / 2);
  c.beginPath();
  c.rect((-w * scale) / 2, (-h * scale) / 2, w * scale, h * scale);
  c.clip();
  c.scale(scale, scale);
  c.rotate((-angle * Math.PI) / 180);
  c.translate(-cx, -cy);
  c.drawImage(image, 0, 0, size[0], size[1]);
  c.restore();
  return true;
}

export function drawWhole(canvas, image) {
  const { c, scale, w, h } = fit(canvas, image?.width ?? 1, image?.height ?? 1);
  if (image) c.drawImage(image, (canvas.width - w * scale) / 2, (canvas.height - h * scale) / 2, w * scale, h * scale);
}

function fit(canvas, w, h) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  const c = canvas.getContext("2d");
  c.imageSmoothingQuality = "high";
  return { c, w, h, scale: Math.min(canvas.width / w, canvas.height / h) };
}
