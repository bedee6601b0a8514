// What the page shows, where the address keeps it, and who draws it again when it changes.

const data = JSON.parse(document.getElementById("data").textContent);
const panels = data.panels ?? [];
const images = data.images ?? [];
const find = (selector, within = document) => within.querySelector(selector);
const findAll = (selector, within = document) => [...within.querySelectorAll(selector)];
const panelOf = new Map(panels.map((panel) => [panel.key, panel]));
const MOST = 6; // rows compared at once: as many colours as everybody can tell apart

const state = {
  board: 0,
  score: "iou",
  query: "",
  controls: true,
  all: false, // rows of a long ranking, too
  chosen: [], // keys of panels, in the order in which they were chosen
  slots: {}, // key → number of its colour
  image: null, // its number
  order: "disputed",
  pick: "threshold",
  show: "map",
  cuts: {}, // key → position in the panel's grid, where it is not the row's own
};
const untouched = { order: "disputed", pick: "threshold", show: "map", board: 0 };
const painters = [];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function three(value) {
  if (value == null) return "–";
  return value.toFixed(3).replace(/^-(?!0\.000)/, "−").replace("-", "");
}

// Change the state and tell everybody what changed.
function update(change) {
  Object.assign(state, change);
  for (const paint of painters) paint(Object.keys(change));
  writeAddress();
}

function choose(key, wanted) {
  const chosen = state.chosen.filter((other) => other !== key);
  if (wanted && chosen.length < MOST) chosen.push(key);
  update({ chosen, slots: colours(chosen) });
}

// A row keeps its colour as long as it is chosen; a new one gets the first that is free.
function colours(chosen) {
  const slots = {};
  for (const key of chosen) if (key in state.slots) slots[key] = state.slots[key];
  for (const key of chosen) {
    if (key in slots) continue;
    const taken = new Set(Object.values(slots));
    slots[key] = [...Array(MOST).keys()].find((slot) => !taken.has(slot));
  }
  return slots;
}

function cutOf(panel) {
  return state.cuts[panel.key] ?? panel.own ?? Math.floor(panel.grid.length / 2);
}

let pending = 0;

function writeAddress() {
  clearTimeout(pending); // browsers limit how often an address may change
  pending = setTimeout(() => {
    const words = new URLSearchParams();
    if (images.length) words.set("image", images[state.image].id);
    if (state.chosen.length) words.set("rows", state.chosen.join(" "));
    for (const [name, value] of Object.entries(untouched))
      if (state[name] !== value) words.set(name, state[name]);
    const cuts = Object.entries(state.cuts).filter(([key]) => state.chosen.includes(key));
    if (cuts.length) words.set("at", cuts.map(([key, k]) => `${key}:${panelOf.get(key).grid[k]}`).join(" "));
    const hash = "#" + words;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }, 200);
}

// Take from the address what it says and what exists.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const image = images.findIndex((one) => one.id === words.get("image"));
  const named = (words.get("rows") ?? "").split(" ").filter((key) => panelOf.has(key));
  const chosen = named.length ? [...new Set(named)].slice(0, MOST) : data.favourites;
  const cuts = {};
  for (const word of (words.get("at") ?? "").split(" ")) {
    const [key, value] = word.split(":");
    if (panelOf.has(key) && Number.isFinite(parseFloat(value)))
      cuts[key] = nearest(panelOf.get(key).grid, parseFloat(value));
  }
  const pickFrom = (name, values) => (values.includes(words.get(name)) ? words.get(name) : untouched[name]);
  return {
    chosen,
    slots: colours(chosen),
    cuts,
    order: pickFrom("order", ["worst", "best", "disputed", "id"]),
    pick: pickFrom("pick", ["threshold", "top-k"]),
    show: pickFrom("show", ["map", "image"]),
    board: Math.max(0, Math.min(parseInt(words.get("board")) || 0, data.boards.length - 1)),
    image: image < 0 ? null : image,
  };
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, k) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = k;
  });
  return best;
}
