// The page: its address says what is shown (nothing, `photo`, `sent` or `place`), its server sends
// fragments of HTML. No other server is asked.
"use strict";

const $ = (id) => document.getElementById(id);
const main = $("main");
const visitor = crypto.randomUUID();
const narrow = matchMedia("(max-width: 860px)");
const home = document.title;
const LEAST = 6; // pixels on the screen: anything smaller was a click, which removes the box
const AGAIN = 6000; // milliseconds between two answers that come by themselves

history.scrollRestoration = "manual"; // what is shown comes later than a browser scrolls

let box = null; // left, top, right, bottom as shares of the photo; null: the whole photo
let most = null; // places that are shown; null: the first ones
let scrolled = 0; // what will remember the place on the page
let asking = null; // what the last request can be given up by
let version = document.body.dataset.version;
let answered = 0; // when the answer came
let told = ""; // how far the describing is

// --- the server ---------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = { "x-visitor": visitor };
  const answer = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The page could not reach its server: is it still running?");
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text);
  return text;
}

// Fills an element with what the server sends; what was asked before is given up.
async function fill(element, path) {
  asking?.abort();
  asking = new AbortController();
  main.ariaBusy = "true";
  try {
    element.innerHTML = await ask(path, { signal: asking.signal });
  } catch (error) {
    if (error.name === "AbortError") return false;
    fail(error.message);
  }
  main.ariaBusy = "false";
  return true;
}

function fail(words) {
  main.ariaBusy = "false";
  main.innerHTML = '<div class="verdict wrong" role="alert"><h2 tabindex="-1"></h2><p><a href="/">All places</a></p></div>';
  main.querySelector("h2").textContent = words;
  arrive();
}

// Says what came, and shows it where it is not in sight.
function arrive(top) {
  const title = main.querySelector("h2");
  $("said").textContent = title?.textContent ?? "";
  document.title = location.search.length > 1 && title ? title.textContent : home;
  title?.focus({ preventScroll: true });
  if (top !== undefined) scrollTo(0, top);
  else if (narrow.matches) main.scrollIntoView();
  else if (main.getBoundingClientRect().top < 0) scrollTo(0, 0);
}

// --- what is shown ------------------------------------------------------------------------

const address = () => new URLSearchParams(location.search);

// Keeps what Back must lead back to beside the address.
function remember() {
  clearTimeout(scrolled);
  history.replaceState({ box, most, top: scrollY }, "");
}

addEventListener("scroll", () => {
  clearTimeout(scrolled);
  scrolled = setTimeout(remember, 150);
});

function asked() {
  const here = address();
  const key = here.has("sent") ? "sent" : "photo";
  const words = new URLSearchParams({ [key]: here.get(key) });
  if (box) words.set("box", pixels().join());
  return words;
}

async function search(arrives = true, top = undefined) {
  history.replaceState({ ...history.state, box }, "");
  const words = asked();
  words.set("scales", $("scales").value);
  words.set("k", $("k").value);
  if ($("rerank")) words.set("rerank", $("rerank").value);
  if ($("attention")) $("attention").innerHTML = "";
  if (!(await fill(main, `/answer?${words}`))) return;
  answered = Date.now();
  if (arrives) arrive(top);
}

const places = () => fill(main, most ? `/places?most=${most}` : "/places");

async function show() {
  clearTimeout(scrolled);
  const here = address();
  const now = location.search;
  const searching = here.has("photo") || here.has("sent");
  document.body.classList.toggle("searching", searching);
  $("searched").hidden = !searching;
  const before = history.state;
  box = null;
  most = before?.most ?? null;
  if (searching) {
    $("stage").innerHTML = "";
    // It may come after somebody went on to another photo.
    const stage = ask(`/stage?${asked()}`).then(
      (html) => location.search === now && staged(html),
      (error) => error,
    );
    if (before?.box) {
      main.ariaBusy = "true";
      await stage; // which knows the size of the photo
      if (location.search !== now) return;
      box = frame() ? before.box : null;
      draw();
    }
    await search(true, before?.top);
    await stage;
  } else {
    const place = encodeURIComponent(here.get("place"));
    const came = here.has("place") ? fill(main, `/place?photo=${place}`) : places();
    if (await came) arrive(before?.top ?? 0);
  }
}

function staged(html) {
  $("stage").innerHTML = html;
  if (!frame()) $("stage").innerHTML = ""; // what is wrong is told where the answer would be
  const size = frame()?.dataset;
  if (size) $("query").style.setProperty("--aspect", size.width / size.height);
  draw();
}

function go(to) {
  remember();
  history.pushState(null, "", to);
  return show();
}

addEventListener("popstate", show);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/']");
  if (!link || link.target || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  $("large").close();
  go(link.getAttribute("href"));
});

// --- a photo of the visitor ---------------------------------------------------------------

async function check(files) {
  if (files.length > 1) throw new Error(`One photo at a time, please: these are ${files.length}.`);
  const [{ name, size }] = files;
  const most = Number(document.body.dataset.maxBytes);
  if (size > most) {
    const words = (x) => `${Number((x / 2 ** 20).toFixed(1))} MiB`;
    throw new Error(`${name} has ${words(size)}; the limit is ${words(most)}.`);
  }
  try {
    await files[0].slice(0, 1).arrayBuffer();
  } catch {
    throw new Error(`${name} cannot be read: is it a folder?`);
  }
}

async function send(files) {
  if (!files.length) return;
  const file = files[0];
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  main.ariaBusy = "true";
  remember();
  try {
    await check(files);
    const path = `/sent?name=${encodeURIComponent(file.name)}`;
    const answer = JSON.parse(await ask(path, { method: "POST", body: file, signal }));
    if (answer.error) throw new Error(answer.error);
    history.pushState(null, "", `/?sent=${answer.sent}`);
    document.body.classList.add("searching");
    $("searched").hidden = false;
    box = null;
    staged(answer.html);
    await search();
  } catch (error) {
    if (signal.aborted) return;
    // What was there before would seem to belong to this file.
    history.pushState(null, "", "/?");
    document.body.classList.remove("searching");
    $("searched").hidden = true;
    $("stage").innerHTML = "";
    fail(error.message);
  }
}

$("file").addEventListener("change", (event) => {
  send([...event.target.files]);
  event.target.value = "";
});
$("other").addEventListener("click", () => $("file").click());
addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  send([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => send([...event.clipboardData.files]));

// --- the box ------------------------------------------------------------------------------

const frame = () => $("stage").querySelector(".frame");
const fields = [...$("box-fields").querySelectorAll("input")];
const clamp = (x) => Math.min(Math.max(x, 0), 1);
let start = null;
let before = null;

function pixels() {
  const size = frame()?.dataset;
  if (!size) return [0, 0, 0, 0];
  const sides = [size.width, size.height, size.width, size.height].map(Number);
  return sides.map((side, i) => Math.round((box ?? [0, 0, 1, 1])[i] * side));
}

function draw() {
  const shown = frame()?.querySelector(".box");
  pixels().forEach((value, i) => (fields[i].value = value));
  $("whole").disabled = box === null;
  if (!shown) return;
  shown.hidden = box === null;
  if (box === null) return;
  const [left, top, right, bottom] = box.map((x) => 100 * x);
  shown.style.left = `${left}%`;
  shown.style.top = `${top}%`;
  shown.style.width = `${right - left}%`;
  shown.style.height = `${bottom - top}%`;
}

function point(event) {
  const area = frame().getBoundingClientRect();
  return [
    clamp((event.clientX - area.left) / area.width),
    clamp((event.clientY - area.top) / area.height),
  ];
}

$("stage").addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0 || !event.target.closest(".frame")) return;
  event.preventDefault();
  frame().setPointerCapture(event.pointerId);
  start = point(event);
  before = box;
});
$("stage").addEventListener("pointermove", (event) => {
  if (start === null) return;
  const [x, y] = point(event);
  box = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
  draw();
});
$("stage").addEventListener("pointerup", () => {
  if (start === null) return;
  start = null;
  const area = frame().getBoundingClientRect();
  const drawn = box !== null && box !== before;
  if (!drawn || (box[2] - box[0]) * area.width < LEAST || (box[3] - box[1]) * area.height < LEAST) {
    box = null;
  }
  draw();
  if (box !== null || before !== null) search();
});
$("stage").addEventListener("pointercancel", () => {
  if (start === null) return;
  start = null;
  box = before;
  draw();
});
$("whole").addEventListener("click", () => {
  box = null;
  draw();
  search();
});
$("box-fields").addEventListener("change", () => {
  const size = frame()?.dataset;
  if (!size) return;
  const sides = [size.width, size.height, size.width, size.height].map(Number);
  const whole = [0, 0, ...sides.slice(2)];
  const values = fields.map((field, i) => (field.value === "" ? whole[i] : Number(field.value)));
  const [l, t, r, b] = values.map((value, i) => clamp(value / sides[i]));
  box = l <= 0 && t <= 0 && r >= 1 && b >= 1 ? null : [l, t, r, b];
  draw();
  search();
});
for (const id of ["scales", "rerank", "k"]) $(id)?.addEventListener("change", () => search());
$("look")?.addEventListener("click", async () => {
  $("look").disabled = true;
  try {
    const words = String(asked());
    const map = await ask(`/attention?${words}`);
    if (words === String(asked())) $("attention").innerHTML = map; // else it comes too late
  } catch (error) {
    $("attention").textContent = error.message;
  }
  $("look").disabled = false;
});

// --- photos that are still being described ------------------------------------------------

// Whether the visitor would be disturbed if what is shown changed.
const busy = () =>
  document.hidden ||
  $("large").open ||
  $("why").open ||
  main.ariaBusy === "true" ||
  main.querySelector(".wrong") ||
  (main.contains(document.activeElement) && document.activeElement.tagName !== "H2");

async function refresh(now) {
  if (now === version || busy()) return;
  const here = address();
  if (here.has("place")) return;
  if (here.has("photo") || here.has("sent")) {
    if (Date.now() - answered < AGAIN) return;
    version = now;
    await search(false);
  } else {
    version = now;
    await places();
  }
}

async function watch() {
  let working = true;
  let pause = 2000;
  try {
    const found = JSON.parse(await ask("/status"));
    if (found.html !== told) {
      const open = $("status").querySelector("details")?.open;
      $("status").innerHTML = told = found.html;
      if (open && $("status").querySelector("details")) $("status").querySelector("details").open = true;
    }
    working = found.working || String(found.version) !== version;
    await refresh(String(found.version));
  } catch {
    pause = 20000; // the server is busy, or has ended
  }
  if (working) setTimeout(watch, pause);
}

watch();
if (location.search.length > 1 || history.state) show();
