// The board: asks for the runs every two seconds, and for the curves of those that are chosen and at work.

import { coloured, element, number, panel } from "./draw.js";

const EVERY = 2000, MAIN = 9;
const MOST = "most looked at", ALL = "all";  // what the metrics' list begins with
const at = (id) => document.getElementById(id);
let runs = [];
const chosen = new Map();   // key -> colour
const details = new Map();  // key -> {curves, answers}
let order = [];             // all metrics, those first that people look at first
let meanings = {};          // metric -> what it is, "" where only its author knows
let beside = { called: {} }, besideOf = "";  // what is said of the runs that are chosen, and of which
let first = true;
let shownBefore = "";

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds)), minutes = Math.floor(whole / 60);
  const two = (value) => String(value).padStart(2, "0");
  return minutes >= 60 ? `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function about(run) {
  const step = run.steps ? `step ${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}` : run.at || "at work";
  if (run.state === "runs") return [run.stage, step, ...(run.left === null ? [] : [`${clock(run.left)} left`])].join(" · ");
  if (run.state === "stopped")
    return [run.stage, run.steps ? `stopped at ${step}` : "ended before it was done", ...(run.why ? [run.why] : [])].join(" · ");
  const steps = run.steps ? [`${run.steps.toLocaleString("en")} steps`] : [];
  return [run.stage, ...steps, ...(run.when ? [day(new Date(1000 * run.when))] : [])].join(" · ");
}

// A day of this year without the year.
function day(date) {
  const year = date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  return date.toLocaleString(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit", ...year });
}

function freeColour() {
  const taken = new Set(chosen.values());
  let colour = 0;
  while (taken.has(colour)) colour++;
  return colour;
}

// A run that was at work and is done now has another key: its choice goes on.
function follow(before) {
  const keys = new Set(runs.map((run) => run.key));
  for (const old of before) {
    if (keys.has(old.key) || !chosen.has(old.key)) continue;
    const colour = chosen.get(old.key), next = runs.find((run) => run.name === old.name && !chosen.has(run.key));
    chosen.delete(old.key);
    details.delete(old.key);
    if (next) chosen.set(next.key, colour);
  }
  if (first && runs.length) {
    const working = runs.filter((run) => run.state === "runs").slice(0, 2);
    const drawn = runs.filter((run) => run.metrics.length && !working.includes(run)).slice(0, 2);
    const some = working.some((run) => run.metrics.length) ? working : [...working, ...drawn];
    for (const run of some.length ? some : runs.slice(0, 2)) chosen.set(run.key, freeColour());
    first = false;
  }
}

function drawRuns() {
  const wanted = at("filter").value.toLowerCase();
  const focused = document.activeElement?.dataset?.key;
  at("runs").replaceChildren(...runs.filter((run) => run.name.toLowerCase().includes(wanted)).map((run) => {
    const box = element("input", { type: "checkbox" });
    box.dataset.key = run.key;
    box.checked = chosen.has(run.key);
    box.addEventListener("change", () => choose(run.key, box.checked));
    const label = element("label", {}, box, element("span", { class: "name" }, run.title),
      element("span", { class: "about" }, about(run)));
    if (run.state === "runs" && run.steps) {
      const bar = element("span", {});
      bar.style.setProperty("width", `${100 * run.step / run.steps}%`);
      label.append(element("span", { class: "meter", "aria-hidden": "true" }, bar));
    }
    if (chosen.has(run.key)) coloured(label, chosen.get(run.key));
    return element("li", {}, label);
  }));
  if (focused !== undefined) for (const box of at("runs").querySelectorAll("input")) if (box.dataset.key === focused) box.focus();
  at("none").hidden = at("runs").childElementCount > 0;
  at("none").textContent = runs.length ? `No run has “${at("filter").value}” in its name.`
    : "There is no run yet. It appears here as soon as one begins.";
}

async function choose(key, on) {
  if (on) chosen.set(key, freeColour());
  else chosen.delete(key);
  await fetchDetails(false);
  draw();
}

function selected() {
  return runs.filter((run) => chosen.has(run.key) && details.has(run.key))
    .map((run) => ({ ...run, ...details.get(run.key), colour: chosen.get(run.key), called: beside.called[run.key] ?? run.title }));
}

function options(select, wanted) {
  const before = select.value;
  if (wanted.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(...wanted.map((name) => element("option", { value: name }, name)));
    if (wanted.includes(before)) select.value = before;
  }
}

function drawCurves(picked) {
  const known = new Set(picked.flatMap((run) => Object.keys(run.curves)));
  const metrics = order.filter((name) => known.has(name));
  options(at("metric"), [MOST, ALL, ...metrics]);
  const wanted = at("metric").value, one = wanted !== MOST && wanted !== ALL;
  const names = one ? [wanted] : wanted === ALL ? metrics : metrics.slice(0, MAIN);
  at("plots").classList.toggle("one", one);
  at("legend").replaceChildren(...picked.map((run) =>
    coloured(element("span", {}, element("span", { class: "swatch" }), run.title), run.colour)));
  const focused = [...at("plots").querySelectorAll("svg")].indexOf(document.activeElement);
  at("plots").replaceChildren(...names.flatMap((metric) => charts(metric, picked).map(([title, some]) => panel(title,
    some.map((run) => ({ ...run, points: run.curves[metric] })), at("smooth").checked))));
  at("meanings").replaceChildren(...names.filter((name) => meanings[name]).map((name) =>
    element("div", {}, element("dt", {}, name), " ", element("dd", {}, meanings[name]))));
  if (focused >= 0) at("plots").querySelectorAll("svg")[focused]?.focus();
}

// Of runs without curves, what there is to say in their place; it moves on while the curves of others stay.
function drawBare(picked) {
  const bare = picked.filter((run) => !Object.keys(run.curves).length).map((run) => coloured(element("p", { class: "hint" },
    element("span", { class: "swatch" }), `${run.title}: ${instead(run)}`), run.colour));
  if (!picked.length) bare.push(element("p", { class: "hint" }, "Choose a run to see its curves."));
  if (at("bare").textContent !== bare.map((line) => line.textContent).join("")) at("bare").replaceChildren(...bare);
}

function instead(run) {
  if (run.state === "runs") return run.at || "at work; it draws no curves yet.";
  return run.state === "done" ? `no curves, for it trained nothing. align show ${run.name}` : "no curves, for no step of it is told of.";
}

// Runs with that metric, by the title of the chart that they are in: those of several kinds, as losses are, are not
// laid over each other, as in `align compare`.
function charts(metric, picked) {
  const kinds = new Map();
  for (const run of picked.filter((one) => one.curves[metric]?.length)) {
    const kind = run.kinds[metric] ?? "";
    kinds.set(kind, [...(kinds.get(kind) ?? []), run]);
  }
  return [...kinds].map(([kind, some]) => [kinds.size > 1 ? `${metric} (${kind})` : metric, some]);
}

function drawAnswers(picked) {
  const told = picked.filter((run) => run.answers.length);
  at("answers-section").hidden = !told.length;
  const prompts = [...new Set(told.flatMap((run) => run.answers.flatMap(([, pairs]) => pairs.map(([prompt]) => prompt))))];
  options(at("prompt"), prompts);
  const prompt = at("prompt").value;
  at("answers").replaceChildren(...told.flatMap((run) => {
    const found = run.answers.flatMap(([when, pairs]) => pairs.filter(([asked]) => asked === prompt).map(([, text]) => [when, text]));
    const items = folded(found).map(([when, text]) => coloured(element("li", {}, element("span", { class: "when" }, when),
      element("span", { class: "text" }, text || "(nothing)")), run.colour));
    return items.length ? [element("h3", {}, run.title), element("ul", { class: "answers" }, ...items)] : [];
  }));
}

// Answers that stay the same from one time to the next, as one.
function folded(answers) {
  const found = [];
  for (const [when, text] of answers) {
    const last = found.at(-1);
    if (last?.[1] === text) last[2] = when;
    else found.push([when, text, ""]);
  }
  return found.map(([from, text, to]) => [to ? `${from} to ${to}` : from, text]);
}

function counted(settings) {
  return `${settings.toLocaleString("en")} setting${settings === 1 ? "" : "s"}`;
}

// What `align compare` finds, too.
function drawSettings(picked) {
  const found = beside.settings;
  at("settings-section").hidden = !found;
  if (!found) return;
  const order = found.runs.map((key) => picked.find((run) => run.key === key)).filter(Boolean);
  const head = element("tr", {}, element("th", { scope: "col" }, "setting"), ...order.map((run) =>
    element("th", { scope: "col" }, coloured(element("span", { class: "swatch" }), run.colour), run.title)));
  const rows = Object.entries(found.rows).map(([key, values]) => element("tr", {},
    element("th", { scope: "row" }, key), ...values.map((value) => element("td", {}, value))));
  const some = `${found.alone.slice(0, 8).join(", ")}${found.alone.length > 8 ? ", …" : ""}`;
  const rest = found.alone.length ? ` Not all have ${counted(found.alone.length)} (${some}).` : "";
  const same = element("p", { class: "hint" }, `${counted(found.same)} ${found.same === 1 ? "is" : "are"} the same.${rest}`);
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  at("settings").replaceChildren(...(rows.length ? [table] : []), same);
}

function draw() {
  drawRuns();
  const picked = selected();
  drawBare(picked);
  const now = JSON.stringify([picked.map((run) => [run.key, run.colour, run.curves, run.answers]), beside,
    at("metric").value, at("smooth").checked, at("prompt").value]);
  if (now === shownBefore) return;  // what somebody reads stays as it is
  shownBefore = now;
  drawCurves(picked);
  drawAnswers(picked);
  drawSettings(picked);
}

async function fetchDetails(again) {
  const keys = runs.filter((run) => chosen.has(run.key)).map((run) => run.key), asked = keys.join("\n");
  if (asked !== besideOf) {
    const query = keys.map((key) => `key=${encodeURIComponent(key)}`).join("&");
    beside = await (await fetch(`beside.json?${query}`)).json();
    besideOf = asked;
  }
  const wanted = runs.filter((run) => chosen.has(run.key) && (!details.has(run.key) || (again && run.state !== "done")));
  await Promise.all(wanted.map(async (run) => {
    const answer = await fetch(`curves.json?key=${encodeURIComponent(run.key)}`);
    details.set(run.key, await answer.json());
  }));
}

async function look() {
  try {
    const found = await (await fetch("runs.json")).json(), before = runs;
    runs = found.runs;
    order = found.metrics;
    meanings = found.meanings;
    at("store").textContent = found.store;
    follow(before);
    await fetchDetails(true);
    const working = runs.filter((run) => run.state === "runs").length;
    say(working ? `${number(working)} at work` : "nothing at work");
    draw();
  } catch {
    say("The board was stopped: run align board again.");
  }
  setTimeout(look, EVERY);
}

function say(text) {
  if (at("state").textContent !== text) at("state").textContent = text;
}

for (const id of ["metric", "smooth", "prompt"]) at(id).addEventListener("change", draw);
at("filter").addEventListener("input", drawRuns);
look();
