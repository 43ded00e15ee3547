// Keeps a page current that says everything without this. What comes from the server is put in as it is where the same
// page had it before; nothing is made of text that was typed by somebody.
"use strict";

const body = document.body;
const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// The log clock, told by the server and carried on from there. Microseconds.
let clock = { told: Number(body.dataset.now) || Date.now() * 1000, at: performance.now() };
const now = () => clock.told + (performance.now() - clock.at) * 1000;

function rough(micros) {
  const seconds = micros / 1e6;
  if (seconds < 10) return `${Math.floor(seconds * 10) / 10}s`;
  const whole = Math.floor(seconds);
  const [d, h, m, s] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  if (d) return `${d}d ${h}h ${m}m ${s}s`;
  if (h) return `${h}h ${m}m ${s}s`;
  return m ? `${m}m ${s}s` : `${s}s`;
}

function iso(micros) {
  const rest = String(Math.floor(micros) % 1000).padStart(3, "0");
  return new Date(Math.floor(micros / 1000)).toISOString().replace("Z", `${rest}Z`);
}

function say(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

// How far off an instant is. What was to be just now is not told as past: the page looks again in a moment.
function off(left) {
  if (left >= 0) return `in ${rough(left)}`;
  return left > -3e6 ? "now" : `${rough(-left)} ago`;
}

// Counts down to what will be, and up from what was.
function tick() {
  const at = now();
  for (const element of all("[data-until]")) {
    // In a panel about another instant, time stands still.
    if (element.closest(".why") && scrubbed()) continue;
    say(element, off(Number(element.dataset.until) - at));
  }
  for (const element of all("[data-since]")) say(element, `${rough(Math.max(0, at - Number(element.dataset.since)))} ago`);
  const shown = $("#clock");
  if (shown) say(shown, iso(at).replace("T", " ").replace(/\.\d+Z$/, "Z"));
}

// Asks for this page again and puts what changed in its place. Forms that somebody is filling in stay as they are.
let asking = false, missed = false, pause = 0;
// How long an answer may take. What hangs would keep the page as it is for ever.
const PATIENCE = 10000;
const page = (address) => fetch(address, { headers: { Accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
// What is shown is live once it was looked at, and not because somebody said that one should look.
let seen = now();
const stale = (why) => say($("#connection"), `${why}; what is shown is as of ${iso(seen).slice(11, 19)}Z`);

async function look() {
  if (document.hidden || asking || performance.now() < pause) { missed = true; return; }
  asking = true; missed = false;
  const started = performance.now();
  try {
    const response = await page(location.href.split("#")[0]);
    if (response.redirected) { location.assign(response.url); return; }
    if (response.ok) {
      put(new DOMParser().parseFromString(await response.text(), "text/html"));
      seen = now();
      say($("#connection"), "live");
    } else stale(`not refreshed (${response.status})`);
  } catch { stale("not refreshed, no answer"); }
  finally {
    asking = false;
    // A page that is slow to make is asked for less often.
    pause = performance.now() + Math.max(400, (performance.now() - started) * 4);
    if (missed) setTimeout(look, Math.max(50, pause - performance.now()));
  }
}

const isBeingFilledIn = (element) => {
  const active = document.activeElement;
  const dirty = all("input:not([type=hidden]), textarea", element).some((input) => input.value !== input.defaultValue);
  return dirty || (active && element.contains(active) && active.matches("input, select, textarea"));
};

function put(fresh) {
  const title = $("title", fresh);
  if (title) document.title = title.textContent;
  for (const old of all("[data-live]")) {
    const made = fresh.getElementById(old.id);
    // The page became another one: it was empty, and is no longer.
    if (!made) { $("#main").replaceChildren(...$("#main", fresh).childNodes); wire(); return; }
    if (old.id === "live-timeline" && held !== null) continue;
    if (old.id === "live-why" && scrubbed()) continue;
    if (isBeingFilledIn(old)) continue;
    settle(made); settle(old);
    if (old.innerHTML === made.innerHTML) continue;
    keep(old, () => old.replaceChildren(...made.childNodes));
  }
  wire();
}

// What the ticking clock will say anyway is no change.
function settle(made) {
  const at = now();
  for (const element of all("[data-until]", made)) {
    say(element, off(Number(element.dataset.until) - at));
  }
  for (const element of all("[data-since]", made)) say(element, `${rough(Math.max(0, at - Number(element.dataset.since)))} ago`);
}

// Changes a part of the page and leaves scrolling, the current row, the focus and opened details as they were.
function keep(part, change) {
  const scrolled = all(".scroll", part).map((one) => one.scrollLeft);
  const href = $("tr.here", part)?.dataset.href;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const focus = focused && [focused.tagName, focused.getAttribute("href"), focused.className];
  const opened = all("details[open] > summary", part).map((one) => one.textContent);
  change();
  all(".scroll", part).forEach((one, index) => { one.scrollLeft = scrolled[index] || 0; });
  if (href) all("tr[data-href]", part).find((row) => row.dataset.href === href)?.classList.add("here");
  all("details > summary", part).filter((one) => opened.includes(one.textContent)).forEach((one) => { one.parentElement.open = true; });
  if (focus) {
    all("a, summary, .scroll", part)
      .find((one) => one.tagName === focus[0] && one.getAttribute("href") === focus[1] && one.className === focus[2])?.focus({ preventScroll: true });
  }
}

// A browser has six connections to a server, and this takes one: so only while somebody can see the page.
let source = null, again = 1000;

function follow() {
  if (!body.dataset.now || !$("[data-live]") || document.hidden || source) return;
  source = new EventSource("/live");
  source.addEventListener("look", (event) => {
    again = 1000;
    const told = JSON.parse(event.data);
    if (told.now) { clock = { told: told.now, at: performance.now() }; look(); } else stale("the database is away");
  });
  source.addEventListener("error", () => {
    stale("not connected");
    // What was refused is not asked for again by the browser. The page is looked at all the same.
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(() => { follow(); look(); }, again);
      again = Math.min(again * 2, 15000);
    }
  });
}

function leave() { source?.close(); source = null; }

document.addEventListener("visibilitychange", () => { if (document.hidden) leave(); else { follow(); look(); } });
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", (event) => { if (event.persisted) { follow(); look(); } });

// The timeline: a part of it, and an instant in it.
const timeline = () => $("#timeline");
// Where somebody holds the drawing to move it.
let held = null;
const scrubbed = () => new URLSearchParams(location.search).has("at");

async function frame(address) {
  const wanted = new URL(address, location.href), query = new URLSearchParams(location.search);
  for (const name of ["from", "to"]) {
    if (wanted.searchParams.has(name)) query.set(name, wanted.searchParams.get(name)); else query.delete(name);
  }
  const said = query.toString();
  history.replaceState(null, "", location.pathname + (said ? `?${said}` : ""));
  const response = await page(`${location.pathname}/timeline?${said}`).catch(() => null);
  if (response?.redirected) { location.assign(response.url); return; }
  if (!response?.ok) { stale("the drawing did not come"); return; }
  const made = $("#timeline", new DOMParser().parseFromString(await response.text(), "text/html"));
  if (made) { timeline().replaceWith(made); wire(); }
}

function framed(from, to) {
  if (to - from < 1000) return;
  frame(`?from=${encodeURIComponent(iso(from))}&to=${encodeURIComponent(iso(to))}`);
}

function needle(at) {
  const one = timeline(), line = $("#needle");
  if (!line) return;
  const from = Number(one.dataset.from), to = Number(one.dataset.to), share = (at - from) / (to - from);
  const shown = scrubbed() && share >= 0 && share <= 1;
  line.setAttribute("visibility", shown ? "visible" : "hidden");
  line.setAttribute("x1", share * 1000); line.setAttribute("x2", share * 1000);
}

// One question at a time; while it is asked, only the latest instant counts.
let wanted = null, answering = false;

async function ask() {
  if (answering) return;
  answering = true;
  while (wanted !== null) {
    const at = wanted; wanted = null;
    try {
      const response = await page(`${location.pathname}/why?at=${encodeURIComponent(iso(at))}`);
      if (response.redirected) { location.assign(response.url); return; }
      if (response.ok) {
        const made = $(".why", new DOMParser().parseFromString(await response.text(), "text/html"));
        if (made && wanted === null) $("#live-why").replaceChildren(made);
      } else unanswered(at, response.status);
    } catch { unanswered(at, "no answer"); }
  }
  answering = false;
}

// The panel must not go on telling of another instant than the one that was asked for.
function unanswered(at, why) { if (wanted === null) say($("#live-why"), `What was known at ${iso(at)} could not be read (${why}).`); }

function scrubTo(at) {
  const query = new URLSearchParams(location.search);
  query.set("at", iso(at));
  history.replaceState(null, "", `${location.pathname}?${query}`);
  $("#at").value = iso(at);
  // What somebody asks for is read out; what changes by itself is not.
  $("#live-why").setAttribute("aria-live", "polite");
  needle(at);
  wanted = at;
  ask();
}

function wireScrubber() {
  const range = $("#scrub");
  if (!range) return;
  const one = timeline();
  range.min = one.dataset.from; range.max = one.dataset.to;
  range.hidden = false; $("#scrub-label").hidden = false;
  if (scrubbed()) { const at = Date.parse($("#at").value) * 1000; range.value = at; needle(at); } else if (document.activeElement !== range) range.value = range.max;
  if (range.dataset.wired) return;
  range.dataset.wired = "yes";
  range.addEventListener("input", () => scrubTo(Number(range.value)));
  range.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    const step = (Number(range.max) - Number(range.min)) / (event.shiftKey ? 50 : 500);
    range.value = Number(range.value) + (event.key === "ArrowRight" ? step : -step);
    scrubTo(Number(range.value));
  });
}

function wireTimeline() {
  const one = timeline(), drawing = one && $(".drawing", one);
  if (!drawing || drawing.dataset.wired) return;
  drawing.dataset.wired = "yes";
  for (const link of all("a[data-frame]", one)) {
    link.addEventListener("click", (event) => { event.preventDefault(); frame(link.href); });
  }
  const from = Number(one.dataset.from), to = Number(one.dataset.to);
  const at = (x) => { const box = drawing.getBoundingClientRect(); return from + ((x - box.left) / box.width) * (to - from); };
  drawing.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const middle = at(event.clientX), by = event.deltaY > 0 ? 1.6 : 0.6;
    framed(middle - (middle - from) * by, middle + (to - middle) * by);
  }, { passive: false });
  drawing.addEventListener("pointerdown", (event) => { if (event.button === 0) { held = event.clientX; drawing.setPointerCapture(event.pointerId); } });
  drawing.addEventListener("pointermove", (event) => { if (held !== null) drawing.setAttribute("viewBox", `${(held - event.clientX) * 1000 / drawing.getBoundingClientRect().width} 0 1000 236`); });
  drawing.addEventListener("pointercancel", () => { held = null; drawing.setAttribute("viewBox", "0 0 1000 236"); });
  drawing.addEventListener("pointerup", (event) => {
    if (held === null) return;
    const moved = held - event.clientX, width = drawing.getBoundingClientRect().width; held = null;
    if (Math.abs(moved) < 4) { drawing.setAttribute("viewBox", "0 0 1000 236"); const range = $("#scrub"); if (range) { range.value = at(event.clientX); scrubTo(Number(range.value)); } return; }
    framed(from + (moved / width) * (to - from), to + (moved / width) * (to - from));
  });
}

function wireCopy() {
  const button = $("#copy");
  if (!button || button.dataset.wired) return;
  button.dataset.wired = "yes"; button.hidden = false;
  button.addEventListener("click", async () => {
    const at = new URLSearchParams(location.search).get("at");
    const response = await fetch(button.dataset.document + (at ? `?at=${encodeURIComponent(at)}` : ""), { cache: "no-store" });
    try { await navigator.clipboard.writeText(JSON.stringify(await response.json(), null, 2)); say($("#copied"), "copied"); }
    catch { say($("#copied"), "this browser does not let a page copy; open the document instead"); }
  });
}

function rows() { return all("main tr[data-href]"); }

function step(by) {
  const list = rows(), here = list.findIndex((row) => row.classList.contains("here"));
  const next = list[Math.min(list.length - 1, Math.max(0, here + by))];
  if (!next) return;
  list[here]?.classList.remove("here");
  next.classList.add("here");
  $("a", next)?.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function help() { const dialog = $("#help"); if (dialog && !dialog.open) dialog.showModal(); }

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "Escape" && typing) { event.target.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  // What had the focus may have been replaced meanwhile; the row is still the one that is marked.
  if (event.key === "Enter" && event.target === body) { const here = $("tr.here"); if (here) location.assign(here.dataset.href); return; }
  const acts = { "/": () => $("#search")?.focus(), j: () => step(1), k: () => step(-1), "?": help };
  if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
});

function wire() { wireTimeline(); wireScrubber(); wireCopy(); }

const keys = $("#keys");
if (keys) { keys.hidden = false; keys.addEventListener("click", help); }
wire();
tick();
setInterval(tick, 250);
follow();
