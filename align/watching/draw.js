// Curves as SVG. Every text goes in as text; nothing here makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const WIDTH = 340, HEIGHT = 180, LEFT = 52, RIGHT = 8, TOP = 10, BOTTOM = 20;

export function element(name, attributes = {}, ...inner) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inner);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Past the colours of the style sheet they come again, dashed: 4 pixels, then 6, and so on.
export function coloured(made, colour) {
  made.style.setProperty("--colour", `var(--c${colour % COLOURS})`);
  const dash = 2 + 2 * Math.floor(colour / COLOURS);
  made.style.setProperty("--dash", `${dash}px`);
  made.classList.toggle("dashed", dash > 2);
  return made;
}

export function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

// Round numbers, 1, 2 or 5 times a power of ten apart, within [low, high], from two to six where there are such, and how
// they are written: with as many digits as tell them apart.
function ticks(low, high) {
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough * 0.999);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), plain = step >= 1e-3 && step < 1e5;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    const value = at * step, digits = Math.floor(Math.log10(Math.abs(value || step)) + 1e-9) - Math.floor(Math.log10(step) + 1e-9);
    const exact = Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6, most = Math.min(Math.max(digits, 1), 15);
    const short = exact ? value.toExponential(most).replace(/\.?0*e\+?/, "e") : String(Number(value.toPrecision(most + 1)));
    found.push([value, plain ? value.toFixed(decimals) : at ? short : "0"]);
  }
  return found;
}

// The mean over the points before, weighing them by 0.8 each, without a start that hangs on the first point.
function smoothed(points) {
  let sum = 0, weight = 0;
  return points.map(([step, value]) => {
    sum = 0.8 * sum + value;
    weight = 0.8 * weight + 1;
    return [step, sum / weight];
  });
}

function nearest(points, step) {
  let best = points[0];
  for (const point of points) if (Math.abs(point[0] - step) < Math.abs(best[0] - step)) best = point;
  return best;
}

// One metric of several runs. `lines`: {title, called, colour, points}; `called` is the name in little room. Pointer and arrow keys read values at a step.
export function panel(metric, lines, smooth) {
  const title = element("h3", {}, metric, smooth ? element("span", { class: "note" }, " smoothed") : "");
  const values = element("ul", { class: "values", "aria-live": "polite" });
  const drawn = lines.map((line) => ({ ...line, points: smooth ? smoothed(line.points) : line.points }));
  const all = drawn.flatMap((line) => line.points);
  const steps = all.map((point) => point[0]), heights = all.map((point) => point[1]);
  const last = Math.max(1, ...steps);
  let low = Math.min(...heights), high = Math.max(...heights);
  const flat = high - low <= 1e-12 * Math.max(Math.abs(high), 1e-80);
  const marks = flat ? [[high, number(high)]] : ticks(low, high);
  const half = flat ? Math.abs(high) / 2 || 1 : 0;  // one value stands in the middle
  [low, high] = [low - half, high + half];
  const left = Math.max(LEFT, 12 + 7 * Math.max(0, ...marks.map(([, text]) => text.length)));
  const x = (step) => left + (WIDTH - left - RIGHT) * step / last;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const said = drawn.map((line) => `${line.title} ${number(line.points.at(-1)[1])}`).join(", ");
  const picture = shape("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "img",
    "aria-label": `${metric}${smooth ? " smoothed" : ""} to step ${Math.round(last)}: ${said}. Arrow keys read other steps.`,
  });
  for (const [value, text] of marks) {
    picture.append(shape("line", { class: "grid", x1: left, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(shape("text", { class: "tick", x: left - 6, y: y(value) + 3.5, "text-anchor": "end" }, text));
  }
  picture.append(shape("text", { class: "tick", x: left, y: HEIGHT - 5 }, "0"));
  picture.append(shape("text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, `step ${Math.round(last)}`));
  for (const line of drawn) {
    const path = line.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    picture.append(coloured(shape("polyline", { class: "curve", points: path }), line.colour));
    const [step, value] = line.points.at(-1);
    picture.append(coloured(shape("circle", { class: "point", cx: x(step), cy: y(value), r: 3 }), line.colour));
  }
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  picture.append(cursor);

  function read(step) {
    values.replaceChildren(...drawn.map((line) => {
      const [at, value] = nearest(line.points, step);
      const mark = coloured(element("span", { class: "swatch" }), line.colour);
      const named = drawn.length > 1 ? [element("span", { class: "called" }, line.called), " "] : [];
      const said = element("span", { class: "value" }, element("b", {}, number(value)), ` at ${Math.round(at)}`);
      return element("li", { title: line.title }, mark, ...named, said);
    }));
  }
  let at = last;
  function look(step) {
    at = Math.min(last, Math.max(0, step));
    cursor.setAttribute("x1", x(at));
    cursor.setAttribute("x2", x(at));
    cursor.setAttribute("visibility", "visible");
    read(at);
  }
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    look(((event.clientX - box.left) / box.width * WIDTH - left) / (WIDTH - left - RIGHT) * last);
  });
  picture.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    read(last);
  });
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -last / 50, ArrowRight: last / 50, Home: -last, End: last }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    look(at + move);
  });
  read(last);
  return element("article", { class: "panel" }, title, picture, values);
}
