// The contact sheet: fifty at a glance.  What is marked stays open; the rest is accepted in one go.

import * as server from "./server.js";
import { corners } from "./geometry.js";

const AT_ONCE = 6;
export const PER_SHEET = 50;

export class Sheet {
  constructor(container, { changed, open }) {
    this.container = container;
    this.changed = changed;
    this.open = open;
    this.cards = [];
    container.addEventListener("keydown", (event) => this.key(event));
  }

  async show(rows, kind) {
    const round = (this.round = {});
    for (const card of this.cards) for (const image of card.images) image?.close();
    this.cards = [];
    this.container.replaceChildren();
    const ids = rows.slice(0, PER_SHEET).map((row) => row.id);
    this.changed();
    if (!ids.length) return;
    const details = await server.items(ids);
    if (round !== this.round) return;
    this.cards = details.map((detail, n) => this.card(detail, n));
    this.container.replaceChildren(...this.cards.map((card) => card.button));
    this.cards[0].button.tabIndex = 0;
    this.cards[0].button.focus();
    this.changed();
    const waiting = [...this.cards];
    const work = async () => {
      while (waiting.length && round === this.round) {
        const card = waiting.shift();
        const paths = [server.smallOf(card.detail.id), ...(kind === "labels" && card.detail.has_crop ? [server.cropOf(card.detail.id, 256)] : [])];
        card.images = await Promise.all(paths.map((path) => server.bitmap(path).catch(() => null)));
        if (round === this.round) paint(card);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    if (round === this.round) this.container.dataset.ready = String(this.cards.length);
  }

  card(detail, n) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "card";
    button.tabIndex = -1;
    button.setAttribute("role", "checkbox");
    button.setAttribute("aria-checked", "false");
    button.setAttribute("aria-label", `${detail.name}, ${detail.verdict}: wrong`);
    const canvas = document.createElement("canvas");
    const line = document.createElement("div");
    line.className = "line";
    const [name, verdict] = [document.createElement("span"), document.createElement("span")];
    name.textContent = detail.name;
    name.title = detail.name;
    verdict.textContent = detail.verdict.replace("_", " ");
    verdict.className = "faint";
    line.append(name, verdict);
    button.append(canvas, line);
    const card = { detail, button, canvas, images: [], marked: false };
    button.addEventListener("click", () => this.mark(n));
    button.addEventListener("dblclick", () => this.open(detail.id));
    button.addEventListener("focus", () => this.focused(n));
    return card;
  }

  mark(n) {
    const card = this.cards[n];
    card.marked = !card.marked;
    card.button.setAttribute("aria-checked", String(card.marked));
    this.changed();
  }

  focused(n) {
    this.at = n;
    this.cards.forEach((card, i) => (card.button.tabIndex = i === n ? 0 : -1));
  }

  key(event) {
    const columns = getComputedStyle(this.container).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const last = this.cards.length - 1;
    const to = Math.min(Math.max((this.at ?? 0) + step, 0), last);
    this.cards[to]?.button.focus();
  }

  marked() {
    return this.cards.filter((card) => card.marked).map((card) => card.detail);
  }

  rest() {
    return this.cards.filter((card) => !card.marked).map((card) => card.detail);
  }
}

function paint({ detail, canvas, images }) {
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const c = canvas.getContext("2d");
  c.imageSmoothingQuality = "high";
  const [small, crop] = images;
  const gap = 6 * ratio;
  const half = images.length > 1 ? (canvas.width - gap) / 2 : canvas.width;
  if (small) {
    const [w, h] = detail.size;
    const scale = Math.min(half / w, canvas.height / h);
    const [x, y] = [(half - w * scale) / 2, (canvas.height - h * scale) / 2];
    c.drawImage(small, x, y, w * scale, h * scale);
    const box = detail.review?.box ?? detail.box;
    const points = corners(box, detail.review?.angle ?? detail.angle).map(([px, py]) => [x + px * scale, y + py * scale]);
    const path = () => {
      points.forEach((p, i) => (i ? c.lineTo(...p) : c.moveTo(...p)));
      c.closePath();
    };
    c.beginPath();
    c.rect(x, y, w * scale, h * scale);
    path();
    c.fillStyle = "rgb(8 10 14 / 0.6)";
    c.fill("evenodd");
    c.beginPath();
    path();
    c.lineWidth = 1.5 * ratio;
    c.strokeStyle = "#fff";
    c.stroke();
  }
  if (crop) {
    const scale = Math.min(half / crop.width, canvas.height / crop.height);
    c.drawImage(crop, half + gap + (half - crop.width * scale) / 2, (canvas.height - crop.height * scale) / 2, crop.width * scale, crop.height * scale);
  }
}
