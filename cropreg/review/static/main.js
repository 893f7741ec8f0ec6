// The page: keys and buttons on one side, the list, the stage and the server on the other.

import * as server from "./server.js";
import { EDGES, inside, iou, same } from "./geometry.js";
import { Pictures } from "./pictures.js";
import { DECIDED, Queue } from "./queue.js";
import { PER_SHEET, Sheet } from "./sheet.js";
import { Stage, drawHeld, drawWhole } from "./stage.js";

const NEWS_EVERY_MS = 5000;
const BIG_STEP = 10; // px, with Shift
const SEARCH_SHOWN = 50;
const DONE_WORDS = { accept: "Accepted", correct: "Corrected", reject: "Rejected" };

const $ = (id) => document.getElementById(id);
const queue = new Queue();
const notices = new Map();
const recent = []; // ids, oldest first
let facts = { kind: "labels", version: 0, others: [], read_only: false };
let changes = -1;
let busy = false;
let pending = null; // a decision on its way: sent again, it must be the same one
let sheetOpen = false;

const stage = new Stage($("stage"), {
  changed: boxChanged,
  edgeChanged: showEdge,
  viewChanged: showView,
  piece: (id, piece) => server.bitmap(server.regionOf(id, piece)),
});
const pictures = new Pictures(arrived, (error) => tell("error", error.message, true));
const sheet = new Sheet($("cards"), { changed: showSheetWords, open: (id) => closeSheet(id) });

const detailOf = (id) => pictures.of(id).detail;
const current = () => detailOf(queue.current);

// --- the picture on the screen

async function go(id) {
  if (!id) return finish();
  if (queue.current && queue.current !== id) {
    recent.push(queue.current);
    if (recent.length > 20) recent.shift();
  }
  queue.current = id;
  $("done").hidden = true;
  $("single").hidden = sheetOpen;
  if (detailOf(id)) show(id);
  showList();
  await pictures.near([id, ...queue.after(id, 10)], recent);
}

function show(id) {
  const detail = detailOf(id);
  const start = detail.review?.decision === "reject" ? detail : (detail.review?.box ? detail.review : detail);
  stage.show(detail, pictures.image(id), start.box, start.angle);
  document.body.dataset.shown = id;
  $("name").textContent = detail.name;
  $("name").title = detail.name;
  $("why").textContent = detail.why;
  $("stage").setAttribute("aria-label", `${detail.name} with its box`);
  $("verdict").textContent = words(detail.verdict);
  const figures = document.querySelector(".figures");
  $("crop-figure").hidden = !detail.has_crop;
  figures.classList.toggle("one", !detail.has_crop);
  $("held-caption").textContent = facts.kind === "labels" ? "What the box holds" : "The crop as it would be written";
  showDecided(detail);
  showChoices(detail);
  showBox();
  showEdge();
  showPictures(id);
  const place = $("position").textContent;
  say(`${place}. ${detail.name}, ${words(detail.verdict)}. ${detail.why}`);
}

function arrived(id, name) {
  if (id !== queue.current) return;
  if (name === "detail") return show(id);
  if (name === "places") {
    showChoices(current());
    return showBox();
  }
  showPictures(id);
}

function showPictures(id) {
  const held = pictures.of(id);
  const image = pictures.image(id);
  stage.image = image;
  stage.draw();
  drawHeld($("held"), held.sharp ?? image, held.detail.size, stage.box, stage.angle);
  drawWhole($("crop"), held.crop);
  const problem = held.errors?.sharp ?? (image ? null : held.errors?.small);
  $("stage-word").hidden = !problem;
  $("stage-word").textContent = problem ?? "";
  if (held.sharp) $("stage").dataset.sharpened = id;
}

function showDecided(detail) {
  const review = detail.review;
  const line = $("decided");
  line.hidden = !review;
  line.className = `decided ${review?.decision ?? ""}`;
  line.textContent = review ? `${DONE_WORDS[review.decision]} by ${review.who}` : "";
}

function showChoices(detail) {
  $("choices").parentElement.hidden = !detail.suggestions.length;
  $("choices").replaceChildren(
    ...detail.suggestions.map((suggestion, n) => {
      const button = document.createElement("button");
      button.type = "button";
      const key = document.createElement("kbd");
      key.textContent = String(n + 1);
      const source = document.createElement("span");
      source.textContent = suggestion.source.charAt(0).toUpperCase() + suggestion.source.slice(1);
      const far = document.createElement("span");
      far.className = "faint";
      button.append(key, source, far);
      const preview = (on) => () => {
        stage.preview = on && !same(stage.box, suggestion.box) ? suggestion : null;
        stage.draw();
      };
      for (const name of ["pointerenter", "focus"]) button.addEventListener(name, preview(true));
      for (const name of ["pointerleave", "blur"]) button.addEventListener(name, preview(false));
      button.addEventListener("click", () => choose(n));
      return button;
    }),
  );
}

function choose(n) {
  const suggestion = current()?.suggestions[n];
  if (!suggestion) return;
  stage.preview = null;
  stage.setBox(suggestion.box, suggestion.angle);
  say(`${suggestion.source} chosen`);
}

function boxChanged() {
  showBox();
  const id = queue.current;
  const held = pictures.of(id);
  drawHeld($("held"), pictures.image(id), held.detail.size, stage.box, stage.angle);
  if (stage.edge) showEdge();
}

function showBox() {
  const detail = current();
  const inputs = $("edges").elements;
  ["x1", "y1", "x2", "y2"].forEach((name, n) => (inputs[name].value = stage.box ? rounded(stage.box[n], 2) : ""));
  inputs.angle.value = stage.box ? rounded(stage.angle, 2) : "";
  for (const input of inputs) input.disabled = !stage.box;
  [...$("choices").children].forEach((button, n) => {
    const box = detail.suggestions[n].box;
    const taken = same(stage.box, box) && stage.angle === detail.suggestions[n].angle;
    button.setAttribute("aria-pressed", String(taken));
    button.lastElementChild.textContent = taken ? "shown" : stage.box ? `overlap ${iou(stage.box, box).toFixed(2)}` : "";
  });
  $("accept-word").textContent = isAsItStood() ? "Accept" : "Save correction";
  $("accept").disabled = facts.read_only || !stage.box;
  for (const name of ["reject", "undo"]) $(name).disabled = facts.read_only || (name === "undo" && !queue.mine.length);
}

function isAsItStood() {
  const detail = current();
  return !stage.box || (same(stage.box, detail.box) && Math.abs(stage.angle - detail.angle) < 1e-6);
}

function isTouched() {
  const detail = current();
  if (!detail || !stage.box || stage.item?.id !== detail.id) return false;
  const start = detail.review?.box ? detail.review : detail;
  return !same(stage.box, start.box) || Math.abs(stage.angle - start.angle) > 1e-6;
}

function showEdge() {
  const at = EDGES.indexOf(stage.edge);
  const shown = at >= 0 && stage.box;
  $("edge-badge").hidden = !shown;
  if (shown) {
    const text = `${stage.edge} edge at ${rounded(stage.box[at], 1)} px`;
    $("edge-badge").textContent = text;
    say(text);
  }
  ["x1", "y1", "x2", "y2"].forEach((name, n) => $("edges").elements[name].parentElement.classList.toggle("on", n === at));
}

function showView() {
  const percent = Math.round(stage.scale * (devicePixelRatio || 1) * 100);
  $("view-badge").textContent = stage.fitted ? `fit ${percent}%` : percent === 100 ? "1:1" : `${percent}%`;
}

// --- the list

function showList() {
  const counts = queue.counts();
  const total = queue.rows.length;
  const done = counts.get(DECIDED);
  $("progress").max = total || 1;
  $("progress").value = done;
  const pace = queue.pace();
  const words = [`${number(done)} of ${number(total)} decided`];
  if (pace && done < total) words.push(`${pace < 10 ? pace.toFixed(1) : Math.round(pace)} a minute`, `${timeLeft((total - done) / pace)} left`);
  $("pace").textContent = words.join(" · ");
  const listed = queue.listed();
  const at = listed.findIndex((row) => row.id === queue.current);
  $("position").textContent = at >= 0 ? `${number(at + 1)} of ${number(listed.length)}` : "";
  showFilters(counts);
}

function showFilters(counts) {
  const names = [...counts.keys()];
  const box = $("filters");
  if (box.dataset.names !== names.join()) {
    box.dataset.names = names.join();
    box.replaceChildren(
      ...names.map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.filter = name;
        button.append(document.createElement("span"), document.createElement("b"));
        button.addEventListener("click", () => filterBy(name));
        return button;
      }),
    );
  }
  for (const button of box.children) {
    const name = button.dataset.filter;
    button.firstChild.textContent = name === "all" ? "All open" : words(name);
    button.lastChild.textContent = number(counts.get(name));
    button.setAttribute("aria-pressed", String(name === queue.filter));
  }
}

function filterBy(name) {
  queue.filter = name;
  const row = queue.byId.get(queue.current);
  if (sheetOpen) {
    showList();
    return openSheet();
  }
  if (row && queue.passes(row)) return go(row.id);
  return go(queue.rows.find((each) => queue.passes(each))?.id);
}

function next() {
  return go(queue.after(queue.current, 1)[0]);
}

function finish() {
  queue.current = null;
  stage.clear();
  delete document.body.dataset.shown;
  showList();
  const open = queue.counts().get("all");
  $("single").hidden = true;
  $("done").hidden = sheetOpen;
  $("done-word").textContent = open ? `${number(open)} are open under other verdicts.` : closingWord();
  $("done-all").hidden = !open;
  $("done-undo").disabled = facts.read_only || !queue.mine.length;
  if (!sheetOpen) $("done").focus();
}

function closingWord() {
  return facts.kind === "labels"
    ? "Everything is decided, and counts from now on: train again. This page may be closed."
    : "Everything is decided. To write the crops: cropreg predict RUN IMAGES --out OUT --apply-reviews. This page may be closed.";
}

// --- decisions

async function send(decisions, retry) {
  if (busy) return null;
  busy = true;
  document.body.dataset.busy = "true";
  try {
    const details = await server.decide(decisions);
    pending = null;
    hush("error");
    return details;
  } catch (error) {
    if (error.status === 409) {
      pending = null;
      await reload(decisions.map((decision) => decision.item));
    } else if (retry && error.status === 0) pending = retry;
    tell("error", `Not saved: ${error.message}`, true);
    return null;
  } finally {
    busy = false;
    delete document.body.dataset.busy;
  }
}

async function reload(ids) {
  for (const detail of await server.items(ids)) {
    pictures.put(detail);
    const row = queue.byId.get(detail.id);
    if (row) row.state = detail.review?.decision ?? "open";
    if (detail.id === queue.current) {
      stage.item = null;
      show(detail.id);
    }
  }
  showList();
}

function decisionOf(detail, decision, box, angle) {
  const wanted = { item: detail.id, decision, seen: detail.review?.id ?? null };
  if (decision !== "reject") Object.assign(wanted, { box, angle_deg: angle });
  const text = JSON.stringify(wanted);
  const review_id = pending?.text === text ? pending.review_id : server.newId();
  return { text, review_id, sent: { ...wanted, review_id } };
}

async function decide(reject) {
  const detail = current();
  if (!detail || facts.read_only || busy) return;
  if (!reject && !stage.box) return tell("error", "There is no box yet: press 1 to 3 to take one, draw one, or reject with R.", true);
  const made = decisionOf(detail, reject ? "reject" : isAsItStood() ? "accept" : "correct", stage.box, stage.angle);
  const details = await send([made.sent], made);
  if (!details) return;
  note(details);
  queue.decidedNow(1);
  await next();
}

function note(details) {
  for (const detail of details) {
    pictures.put(detail);
    const row = queue.byId.get(detail.id);
    if (row) row.state = detail.review?.decision ?? "open";
    queue.mine = queue.mine.filter((each) => each.item !== detail.id);
    if (detail.review) queue.mine.push({ item: detail.id, review: detail.review.id });
  }
}

async function undo() {
  const last = queue.mine.at(-1);
  if (!last || facts.read_only || busy) return;
  const details = await send([{ review_id: server.newId(), item: last.item, decision: "undo", undoes: last.review, seen: last.review }]);
  if (!details) return;
  note(details);
  if (sheetOpen) return openSheet();
  if (queue.filter !== "all" && !queue.passes(queue.byId.get(last.item))) queue.filter = "all";
  stage.item = null; // shown anew, with the box it had before
  await go(last.item);
  say("Taken back");
}

// --- the contact sheet

async function openSheet() {
  sheetOpen = true;
  $("single").hidden = true;
  $("done").hidden = true;
  $("sheet").hidden = false;
  $("open-sheet").setAttribute("aria-pressed", "true");
  delete $("cards").dataset.ready;
  try {
    // What the matcher took for another picture is not accepted by the dozen, unless it was asked for by its filter.
    const fit = (row) => row.hasBox && row.state === "open" && queue.passes(row) && (row.verdict !== "no_match" || queue.filter !== "all");
    await sheet.show(queue.rows.filter(fit), facts.kind);
  } catch (error) {
    tell("error", error.message, true);
  }
}

function closeSheet(id) {
  sheetOpen = false;
  $("sheet").hidden = true;
  $("single").hidden = false;
  $("open-sheet").setAttribute("aria-pressed", "false");
  const row = queue.byId.get(id ?? sheet.marked()[0]?.id ?? queue.current);
  go(row && queue.passes(row) ? row.id : queue.rows.find((each) => queue.passes(each))?.id);
  $("stage").focus();
}

function showSheetWords() {
  const [rest, marked] = [sheet.rest().length, sheet.marked().length];
  const button = $("sheet-accept");
  const key = document.createElement("kbd");
  key.textContent = "Enter";
  const text = rest ? `Accept ${marked ? "the other " : "all "}${rest}` : marked ? "Look at what is marked" : "Nothing with a box is open here";
  button.replaceChildren(document.createTextNode(text), key);
  button.disabled = (facts.read_only && rest > 0) || (!rest && !marked);
}

async function acceptSheet() {
  const rest = sheet.rest();
  const marked = sheet.marked();
  if (!rest.length) return marked.length ? closeSheet(marked[0].id) : undefined;
  if (facts.read_only) return;
  const details = await send(rest.map((detail) => decisionOf(detail, "accept", detail.box, detail.angle).sent));
  if (!details) return;
  note(details);
  queue.decidedNow(details.length);
  showList();
  if (marked.length) return closeSheet(marked[0].id);
  await openSheet();
  if (!sheet.cards.length) closeSheet();
}

// --- words

function tell(key, text, dismiss = false) {
  notices.set(key, { text, dismiss });
  showNotices();
}

function hush(key) {
  if (notices.delete(key)) showNotices();
}

function showNotices() {
  $("notices").replaceChildren(
    ...[...notices].map(([key, { text, dismiss }]) => {
      const line = document.createElement("p");
      line.className = key === "error" ? "bad" : "";
      const words = document.createElement("span");
      words.textContent = text;
      line.append(words);
      if (dismiss) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "Dismiss";
        button.addEventListener("click", () => hush(key));
        line.append(button);
      }
      return line;
    }),
  );
}

function say(text) {
  $("live").textContent = text;
}

function tellOthers(others) {
  facts.others = others;
  if (!others.length) return hush("others");
  const who = others.length === 1 ? `${others[0]} is` : `${others.slice(0, -1).join(", ")} and ${others.at(-1)} are`;
  tell("others", `${who} reviewing the same folder now. What they decide disappears from your list; nothing is overwritten unasked.`);
}

const number = (n) => n.toLocaleString("en");
const rounded = (v, digits) => String(Number(v.toFixed(digits)));
const words = (verdict) => verdict.charAt(0).toUpperCase() + verdict.slice(1).replaceAll("_", " ");

function timeLeft(minutes) {
  if (minutes < 1) return "under a minute";
  if (minutes < 90) return `${Math.round(minutes)} min`;
  return `${(minutes / 60).toFixed(1)} h`;
}

// --- dialogs

function openSearch() {
  $("search").showModal();
  $("search-text").select();
  showFound();
}

let found = [];
let chosen = 0;

function showFound() {
  const wanted = $("search-text").value.trim().toLowerCase();
  const all = queue.rows.filter((row) => row.name.toLowerCase().includes(wanted) || words(row.verdict).toLowerCase() === wanted);
  found = all.slice(0, SEARCH_SHOWN);
  chosen = 0;
  $("search-found").replaceChildren(
    ...found.map((row, n) => {
      const line = document.createElement("li");
      line.id = `found-${n}`;
      line.setAttribute("role", "option");
      const [name, state] = [document.createElement("span"), document.createElement("span")];
      name.textContent = row.name;
      state.textContent = row.state === "open" ? words(row.verdict) : DONE_WORDS[row.state];
      state.className = "faint";
      line.append(name, state);
      line.addEventListener("click", () => takeFound(n));
      return line;
    }),
  );
  $("search-count").textContent = all.length > found.length ? `${number(all.length)} found, the first ${found.length} shown` : `${number(all.length)} found`;
  showChosen();
}

function showChosen() {
  [...$("search-found").children].forEach((line, n) => line.setAttribute("aria-selected", String(n === chosen)));
  const line = $("search-found").children[chosen];
  line?.scrollIntoView({ block: "nearest" });
  $("search-text").setAttribute("aria-activedescendant", line?.id ?? "");
}

function takeFound(n) {
  const row = found[n];
  if (!row) return;
  $("search").close();
  visit(row);
}

// Goes to a row whatever the filter shows.
function visit(row) {
  if (!queue.passes(row)) queue.filter = row.state === "open" ? "all" : DECIDED;
  if (sheetOpen) closeSheet(row.id);
  else go(row.id);
}

function openGoto() {
  const count = queue.listed().length;
  $("goto-word").textContent = `Number, 1 to ${number(count)}`;
  $("goto-number").max = count;
  $("goto").showModal();
  $("goto-number").select();
}

// --- hands

const keys = {
  Enter: () => decide(false),
  r: () => decide(true),
  s: next,
  p: () => go(queue.before(queue.current) ?? queue.current),
  z: undo,
  f: () => stage.fit(),
  e: (event) => stage.cycle(event.shiftKey ? -1 : 1),
  c: openSheet,
  "/": openSearch,
  g: openGoto,
  "?": () => $("help").showModal(),
  " ": () => stage.lookAtEdge(),
  1: () => choose(0),
  2: () => choose(1),
  3: () => choose(2),
  "[": () => turn(-0.1),
  "]": () => turn(0.1),
  "{": () => turn(-1),
  "}": () => turn(1),
  o: () => lay(true),
  Escape: () => stage.select(null),
  ArrowLeft: (event) => stage.nudge(event.shiftKey ? -BIG_STEP : -1, 0),
  ArrowRight: (event) => stage.nudge(event.shiftKey ? BIG_STEP : 1, 0),
  ArrowUp: (event) => stage.nudge(0, event.shiftKey ? -BIG_STEP : -1),
  ArrowDown: (event) => stage.nudge(0, event.shiftKey ? BIG_STEP : 1),
};
const sheetKeys = { c: () => closeSheet(), Escape: () => closeSheet(), z: undo, "/": openSearch, "?": keys["?"], Enter: acceptSheet };
const anywhere = new Set(["z", "c", "/", "?"]); // keys that mean something with no picture on the screen
const repeatable = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "[", "]", "{", "}", "o"]);

function turn(by) {
  if (!stage.box) return;
  const angle = Math.round((stage.angle + by) * 1000) / 1000;
  const box = angle ? stage.box : inside(stage.box, stage.item.size);
  stage.setBox(box, angle);
  say(`turned to ${rounded(angle, 1)} degrees`);
}

function lay(on) {
  const overlay = on ? (pictures.of(queue.current).crop ?? null) : null;
  if (stage.overlay === overlay) return;
  stage.overlay = overlay;
  stage.draw();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target instanceof HTMLInputElement) {
    if (event.key === "Escape") $("stage").focus();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const onButton = target instanceof HTMLButtonElement;
  if (onButton && (key === " " || (key === "Enter" && !target.classList.contains("card")))) return; // the button's own key
  if (event.repeat && !repeatable.has(key)) return event.preventDefault(); // a key held down must not decide about the next picture
  const action = sheetOpen ? sheetKeys[key] : queue.current || anywhere.has(key) ? keys[key] : undefined;
  if (!action) return;
  event.preventDefault();
  action(event);
});
document.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "o") lay(false);
});

for (const [id, action] of Object.entries({
  accept: () => decide(false),
  reject: () => decide(true),
  skip: next,
  undo,
  "open-sheet": () => (sheetOpen ? closeSheet() : openSheet()),
  "open-search": openSearch,
  "open-help": keys["?"],
  "done-all": () => filterBy("all"),
  "done-undo": undo,
  "sheet-accept": acceptSheet,
  "sheet-close": () => closeSheet(),
})) {
  $(id).addEventListener("click", action);
}
// After a click the keys belong to the picture again; who came to a button by Tab stays there.
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (event.detail > 0 && button && !sheetOpen && !document.querySelector("dialog[open]")) $("stage").focus();
});

$("edges").addEventListener("change", () => {
  const inputs = $("edges").elements;
  const box = ["x1", "y1", "x2", "y2"].map((name) => Number(inputs[name].value));
  const angle = Number(inputs.angle.value);
  const whole = [...box, angle].every(Number.isFinite) && Math.abs(angle) <= 180 && box[2] - box[0] >= 1 && box[3] - box[1] >= 1;
  if (whole) stage.setBox(angle ? box : inside(box, stage.item.size), angle);
  else showBox();
});
$("edges").addEventListener("submit", (event) => event.preventDefault());
$("search-text").addEventListener("input", showFound);
$("search-text").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    chosen = Math.min(Math.max(chosen + step, 0), found.length - 1);
    showChosen();
  } else if (event.key === "Enter") {
    event.preventDefault();
    takeFound(chosen);
  }
});
$("goto").addEventListener("submit", () => {
  const row = queue.listed()[Number($("goto-number").value) - 1];
  if (row) visit(row);
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => !sheetOpen && $("stage").focus());
}
addEventListener("beforeunload", (event) => {
  if (isTouched() && !facts.read_only) event.preventDefault(); // a box was moved and not yet saved
});
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    pictures.fitTo($("stage"));
    if (current()) showPictures(queue.current);
  }, 150);
});

// --- start

async function load() {
  const fresh = await server.queue();
  facts = { ...fresh, items: undefined };
  queue.load(fresh);
  $("where").textContent = fresh.uri.split("/").slice(-2).join("/");
  $("where").title = fresh.uri;
  document.title = `Review ${fresh.uri.split("/").pop()}`;
  if (fresh.read_only) tell("read-only", "Read-only: look, but nothing is decided.");
  tellOthers(fresh.others);
}

async function hear() {
  try {
    const fresh = await server.news(changes);
    hush("gone");
    if (fresh.version !== facts.version) {
      const { mine } = queue; // the order of what can be undone is this page's own
      await load();
      queue.mine = mine;
      pictures.forgetDetails();
      if (queue.current) {
        for (const detail of await server.items([queue.current])) pictures.put(detail);
        if (!isTouched()) showChoices(current());
        stage.item = stage.item && { ...current() };
        showBox();
        stage.draw();
        pictures.near([queue.current, ...queue.after(queue.current, 10)], recent);
      } else if (!sheetOpen) await filterBy(queue.filter);
    }
    if (fresh.decided) {
      changes = fresh.changes;
      queue.setStates(fresh.decided);
      const row = queue.byId.get(queue.current);
      if (row && row.state !== "open" && !current()?.review && !busy) await reload([row.id]);
    }
    if (fresh.others.join() !== facts.others.join()) tellOthers(fresh.others);
    showList();
  } catch (error) {
    if (error.status === 0) tell("gone", error.message);
    else tell("error", error.message, true);
  } finally {
    setTimeout(hear, NEWS_EVERY_MS);
  }
}

async function start() {
  try {
    await load();
  } catch (error) {
    return tell("error", error.message);
  }
  pictures.fitTo($("stage"));
  await filterBy("all");
  if (queue.current) $("stage").focus({ focusVisible: false });
  document.body.dataset.ready = "true";
  setTimeout(hear, NEWS_EVERY_MS);
}

start();
