// The list: what is open, what was decided, what is shown of it, and how fast it goes.

export const DECIDED = "decided";
const ORDER = ["all", "review", "ambiguous", "doubtful", "flat", "no_match", "suspicious", "accept", "failed"];
const PAUSE_S = 60; // a longer gap between two decisions was a pause
const PACE_OF = 30; // decisions

export class Queue {
  constructor() {
    this.rows = []; // { id, name, verdict, state, hasBox }
    this.byId = new Map();
    this.filter = "all";
    this.current = null; // id
    this.mine = []; // { item, review }: what can be undone, oldest first
    this.times = []; // [seconds, decisions]
  }

  load(facts) {
    this.rows = facts.items.map(([id, name, verdict, state, hasBox]) => ({ id, name, verdict, state, hasBox }));
    this.byId = new Map(this.rows.map((row) => [row.id, row]));
    this.mine = facts.mine.map(([item, review]) => ({ item, review }));
  }

  setStates(decided) {
    for (const row of this.rows) row.state = decided[row.id] ?? "open";
  }

  counts() {
    const counts = new Map([["all", 0], [DECIDED, 0]]);
    for (const row of this.rows) {
      if (!counts.has(row.verdict)) counts.set(row.verdict, 0);
      if (row.state !== "open") counts.set(DECIDED, counts.get(DECIDED) + 1);
      else for (const name of ["all", row.verdict]) counts.set(name, counts.get(name) + 1);
    }
    const place = (name) => (name === DECIDED ? ORDER.length : ORDER.indexOf(name));
    return new Map([...counts].sort(([a], [b]) => place(a) - place(b)));
  }

  // Rows of the filter; a decided one leaves it, but the one on the screen stays until the page moves on.
  listed() {
    return this.rows.filter((row) => this.passes(row) || (row.id === this.current && this.ofFilter(row)));
  }

  passes(row) {
    if (this.filter === DECIDED) return row.state !== "open";
    return row.state === "open" && (this.filter === "all" || row.verdict === this.filter);
  }

  ofFilter(row) {
    return this.filter === "all" || this.filter === DECIDED || row.verdict === this.filter;
  }

  // The next open rows after the current one, round the end of the list.
  after(id, count = Infinity) {
    const at = this.rows.findIndex((row) => row.id === id);
    const found = [];
    for (let step = 1; step <= this.rows.length && found.length < count; step += 1) {
      const row = this.rows[(at + step + this.rows.length) % this.rows.length];
      if (row.id !== id && this.passes(row)) found.push(row.id);
    }
    return found;
  }

  before(id) {
    const at = this.rows.findIndex((row) => row.id === id);
    for (let step = 1; step < this.rows.length; step += 1) {
      const row = this.rows[(at - step + this.rows.length) % this.rows.length];
      if (this.passes(row)) return row.id;
    }
    return null;
  }

  decidedNow(count, now = performance.now() / 1000) {
    this.times.push([now, count]);
    if (this.times.length > PACE_OF + 1) this.times.shift();
  }

  // Decisions a minute over the last few, pauses left out; null until there are some.
  pace() {
    let seconds = 0;
    let decisions = 0;
    for (let i = 1; i < this.times.length; i += 1) {
      seconds += Math.min(this.times[i][0] - this.times[i - 1][0], PAUSE_S);
      decisions += this.times[i][1];
    }
    return decisions >= 3 && seconds > 0 ? (60 * decisions) / seconds : null;
  }
}
