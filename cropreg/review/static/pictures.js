// Pictures in advance: of the current item and the next ten, first the small one of each, then the sharp one; and where else a crop fits.

import * as server from "./server.js";

const AHEAD = 10;
const BEHIND = 3;
const AT_ONCE = 3; // requests; the server decodes two at a time
const CROP_PX = 640;

export class Pictures {
  constructor(arrived, failed) {
    this.arrived = arrived; // called with an id when something of it has come
    this.failed = failed;
    this.held = new Map(); // id: { detail, small, sharp, crop, error }
    this.wanted = [];
    this.running = 0;
    this.long = 1024;
  }

  // The long side that fills the stage, in steps, so that a resized window does not ask for everything anew.
  fitTo(canvas) {
    const px = Math.max(canvas.clientWidth, canvas.clientHeight) * (devicePixelRatio || 1);
    this.long = Math.min(2560, Math.max(768, Math.ceil(px / 256) * 256));
  }

  of(id) {
    return this.held.get(id) ?? {};
  }

  image(id) {
    const held = this.of(id);
    return held.sharp ?? held.small ?? null;
  }

  put(detail) {
    const held = this.held.get(detail.id) ?? {};
    held.detail = detail;
    this.held.set(detail.id, held);
  }

  forgetDetails() {
    for (const held of this.held.values()) delete held.detail;
  }

  // Says which items are near: `ids[0]` is on the screen, the others come next.
  async near(ids, behind) {
    const keep = new Set([...ids.slice(0, AHEAD + 1), ...behind.slice(-BEHIND)]);
    for (const [id, held] of this.held) {
      if (keep.has(id)) continue;
      for (const name of ["small", "sharp", "crop"]) held[name]?.close();
      held.gone = true;
      this.held.delete(id);
    }
    const list = ids.slice(0, AHEAD + 1);
    const missing = list.filter((id) => !this.of(id).detail);
    const [first, ...rest] = list;
    const jobs = [[first, "small"], [first, "crop"], [first, "places"], [first, "sharp"], ...rest.slice(0, 2).map((id) => [id, "small"])];
    for (const id of rest) jobs.push([id, "small"]);
    for (const id of rest) jobs.push([id, "places"], [id, "sharp"], [id, "crop"]);
    this.wanted = jobs;
    if (missing.length) {
      try {
        for (const detail of await server.items(missing)) {
          this.put(detail);
          this.arrived(detail.id, "detail");
        }
      } catch (error) {
        this.failed(error);
      }
    }
    this.pump();
  }

  pump() {
    while (this.running < AT_ONCE && this.wanted.length) {
      const [id, name] = this.wanted.shift();
      const held = this.held.get(id);
      if (!held?.detail || held[name] || held.coming?.[name]) continue;
      if (name === "crop" && !held.detail.has_crop) continue;
      if (name === "places" && held.detail.verdict !== "ambiguous") continue;
      const get = {
        small: () => server.bitmap(server.smallOf(id)),
        sharp: () => server.bitmap(server.screenOf(id, this.long)),
        crop: () => server.bitmap(server.cropOf(id, CROP_PX)),
        places: async () => {
          const { suggestions } = await server.places(id);
          held.detail = { ...held.detail, suggestions };
          return true;
        },
      }[name];
      held.coming = { ...held.coming, [name]: true };
      this.running += 1;
      get()
        .then((got) => {
          if (held.gone) return got.close?.();
          held[name] = got;
          this.arrived(id, name);
        })
        .catch((error) => {
          held.errors = { ...held.errors, [name]: error.message };
          this.arrived(id, name);
        })
        .finally(() => {
          this.running -= 1;
          this.pump();
        });
    }
  }
}
