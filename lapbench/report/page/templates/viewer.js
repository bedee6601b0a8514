// The images: each with its truth and the maps that are compared; masks and IoU follow the slider at once.

const severalNetworks = new Set(panels.filter((p) => !p.control).map((p) => p.model)).size > 1;
const nameOf = (panel) =>
  [panel.name, severalNetworks && !panel.control && panel.model, panel.native && "own threshold"]
    .filter(Boolean)
    .join(", ");
const scoresOf = (panel) => (state.pick === "top-k" ? panel.topK : panel.iou);
const palettes = Object.fromEntries(Object.entries(data.palettes ?? {}).map(([name, digits]) => [name, parse(digits)]));
let ranking = []; // numbers of images, in the order in which they are shown
let current = null; // what is decoded of the image that is shown

function parse(digits) {
  return digits.match(/.{6}/g).map((colour) => colour.match(/../g).map((part) => parseInt(part, 16)));
}

function colourAt(palette, share) {
  const place = Math.max(0, Math.min(1, share)) * (palette.length - 1);
  const k = Math.min(Math.floor(place), palette.length - 2);
  return palette[k].map((from, i) => from + (place - k) * (palette[k + 1][i] - from));
}

// The colours of a panel's levels: a level stands for the middle between two thresholds.
function coloursOf(panel, scale) {
  const grid = data.grids[panel.maps];
  const table = new Uint8ClampedArray(4 * (grid.length + 1));
  for (let level = 0; level <= grid.length; level++) {
    const value = scale * ((grid[Math.max(0, level - 1)] + grid[Math.min(level, grid.length - 1)]) / 2);
    const share = panel.signed ? (value + 1) / 2 : value;
    table.set([...colourAt(panel.signed ? palettes.signed : palettes.map, share), 255], 4 * level);
  }
  return table;
}

// ---- decoding

async function textOf(id) {
  while (!document.getElementById(id) && document.readyState === "loading")
    await new Promise((resolve) => setTimeout(resolve, 20)); // the page is still arriving
  return document.getElementById(id).textContent;
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

const decodings = new Map(); // of the last few images, and of those beside the one that is shown

function decoded(number) {
  if (!decodings.has(number)) decodings.set(number, decode(number));
  if (decodings.size > 8) decodings.delete(decodings.keys().next().value);
  return decodings.get(number);
}

async function decode(number) {
  const [packed, picture] = await Promise.all([textOf(`block-${number}`), pictureOf(number)]);
  const stream = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const [height, width] = data.shown;
  const planes = [];
  for (let p = 0; p <= data.grids.length; p++)
    planes.push(summed(bytes.subarray(p * height * width, (p + 1) * height * width), width));
  const rest = new DataView(bytes.buffer, planes.length * height * width);
  let at = 0;
  const tables = panels.map((panel) =>
    panel.grid.map(() => {
      const value = rest.getUint16(at++ * 2, true);
      return value === 65535 ? null : value / 65534;
    }),
  );
  return { number, picture, truth: planes[0], maps: planes.slice(1), tables };
}

// Undo the differences between rows and between neighbours; bytes wrap around by themselves.
function summed(plane, width) {
  const sums = plane.slice();
  for (let i = width; i < sums.length; i++) sums[i] += sums[i - width];
  for (let i = 0; i < sums.length; i++) if (i % width) sums[i] += sums[i - 1];
  return sums;
}

async function pictureOf(number) {
  const text = await textOf(`image-${number}`);
  return new Promise((done, failed) => {
    const picture = new Image(); // its own decode() fails now and then where memory is short, drawing it does not
    picture.onload = () => done(picture);
    picture.onerror = () => failed(new Error(`The picture of ${images[number].id} cannot be read.`));
    picture.src = `data:image/jpeg;base64,${text}`;
  });
}

// ---- masks

// Which pixels a panel selects, as 0 or 1.
function maskOf(panel, levels) {
  if (state.pick === "top-k") return topK(levels);
  if (panel.own == null && !(panel.key in state.cuts)) return null;
  const mask = new Uint8Array(levels.length);
  const cut = levelOf(panel, cutOf(panel));
  for (let i = 0; i < levels.length; i++) mask[i] = panel.orientation > 0 ? levels[i] > cut : levels[i] <= cut;
  return mask;
}

// The level that a panel's threshold is; a map on a scale of its own has another one in every image.
function levelOf(panel, cut) {
  if (!panel.scale) return cut;
  const grid = data.grids[panel.maps];
  const threshold = panel.grid[cut] / panel.scale[current.number];
  const above = grid.findIndex((value) => value > threshold);
  return above < 0 ? grid.length : above - 1;
}

// As many of the highest pixels as the truth has; of those that tie at the cut the first.
function topK(levels) {
  const share = images[current.number].truth / (data.size[0] * data.size[1]);
  let wanted = Math.round(share * levels.length);
  const counts = new Array(256).fill(0);
  for (const level of levels) counts[level]++;
  let cut = 255;
  while (cut > 0 && counts[cut] <= wanted) wanted -= counts[cut--];
  return Uint8Array.from(levels, (level) => level > cut || (level === cut && wanted-- > 0));
}

// ---- drawing

function outline(canvas, mask, colour, width) {
  const [h, w] = data.shown;
  const size = canvas.width / w;
  const context = canvas.getContext("2d");
  const path = new Path2D();
  const inside = (x, y) => x >= 0 && y >= 0 && x < w && y < h && mask[y * w + x];
  for (let y = 0; y <= h; y++)
    for (let x = 0; x <= w; x++) {
      if (!!inside(x, y) !== !!inside(x - 1, y)) path.rect(x * size, y * size, 0, size);
      if (!!inside(x, y) !== !!inside(x, y - 1)) path.rect(x * size, y * size, size, 0);
    }
  stroke(context, path, colour, width);
}

function stroke(context, path, colour, width) {
  context.lineCap = "square";
  for (const [style, thickness] of [["#000a", width + 2], [colour, width]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness;
    context.stroke(path);
  }
}

function drawTruth(canvas) {
  const { boxes } = images[current.number];
  if (!boxes.length) return outline(canvas, current.truth, "#2ee6ff", canvas.width / 150);
  const path = new Path2D();
  const [sx, sy] = [canvas.width / data.size[1], canvas.height / data.size[0]];
  for (const [x0, y0, x1, y1] of boxes) path.rect(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
  stroke(canvas.getContext("2d"), path, "#2ee6ff", canvas.width / 150);
}

// Whether a mask is made of areas rather than of specks, which their own outlines would cover.
function coherent(mask) {
  const w = data.shown[1];
  let border = 0, area = 0;
  for (let i = 0; i < mask.length; i++) {
    area += mask[i];
    border += (i % w && mask[i] !== mask[i - 1]) + (i >= w && mask[i] !== mask[i - w]);
  }
  return border <= 16 * Math.sqrt(area);
}

function sized(canvas) {
  const [h, w] = data.shown;
  const times = Math.max(1, Math.round(640 / Math.max(h, w)));
  if (canvas.width !== w * times || canvas.height !== h * times) Object.assign(canvas, { width: w * times, height: h * times });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  return context;
}

const small = document.createElement("canvas"); // one pixel of a map is one pixel here

function drawPanel(panel) {
  const figure = find(`[data-key="${CSS.escape(panel.key)}"]`);
  const levels = current.maps[panel.maps];
  const mask = maskOf(panel, levels);
  const canvas = find("canvas", figure);
  const context = sized(canvas);
  const [h, w] = data.shown;
  const colours = coloursOf(panel, panel.scale?.[current.number] ?? 1);
  const pixels = new ImageData(w, h);
  for (let i = 0; i < levels.length; i++) {
    const [r, g, b] = colours.subarray(4 * levels[i], 4 * levels[i] + 3);
    const out = mask && !mask[i];
    const grey = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    if (state.show === "image") pixels.data.set(out ? [10, 12, 16, 150] : [0, 0, 0, 0], 4 * i);
    else pixels.data.set(out ? [grey, grey, grey, 255] : [r, g, b, 255], 4 * i);
  }
  Object.assign(small, { width: w, height: h });
  small.getContext("2d").putImageData(pixels, 0, 0);
  if (state.show === "image") context.drawImage(current.picture, 0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  drawTruth(canvas);
  if (mask && coherent(mask)) outline(canvas, mask, "#fff", canvas.width / 220);
  tell(panel, figure, canvas);
}

// Write a panel's numbers: the ones that the scores would be, from the table of its image.
function tell(panel, figure, canvas) {
  const cut = cutOf(panel);
  const byThreshold = state.pick === "threshold";
  const iou = iouOf(panel);
  const moved = panel.key in state.cuts && cut !== panel.own;
  const kind = moved ? "moved" : panel.native ? "its own" : panel.own == null ? "none fitted" : "fitted";
  const sign = panel.orientation < 0 ? "below " : "";
  const said = byThreshold ? `${sign}${three(panel.grid[cut])}, ${kind}` : `top ${images[current.number].truth.toLocaleString("en")} pixels`;
  find(".iou", figure).textContent = three(iou);
  find(".said", figure).textContent = said;
  drawSpread(panel, find(".spark", figure), iou);
  const slider = find("input", figure);
  slider.value = cut;
  slider.disabled = !byThreshold;
  slider.setAttribute("aria-valuetext", `${said}; IoU ${three(iou)}`);
  canvas.setAttribute("aria-label", `Map of ${nameOf(panel)} for ${images[current.number].id}; ${said}; IoU ${three(iou)}`);
}

const BARS = 25;

// How the IoU of all images is spread, and where this image stands.
function drawSpread(panel, spark, iou) {
  const counts = new Array(BARS).fill(0);
  for (const score of scoresOf(panel)) if (score != null) counts[Math.min(BARS - 1, Math.floor(score * BARS))]++;
  const most = Math.max(...counts, 1);
  const bars = counts.map((n, k) => `M${(100 * (k + 0.1)) / BARS} 20V${20 - (18 * n) / most}h${80 / BARS}V20z`);
  spark.replaceChildren(draw("path", { class: "bars", d: bars.join("") }));
  if (iou != null) spark.append(draw("path", { class: "here", d: `M${100 * iou} 0V20` }));
}

function iouOf(panel) {
  if (state.pick === "top-k") return panel.topK[current.number];
  if (panel.own == null && !(panel.key in state.cuts)) return null;
  return current.tables[panels.indexOf(panel)][cutOf(panel)];
}

function drawPicture() {
  const canvas = find("#picture");
  const context = sized(canvas);
  context.drawImage(current.picture, 0, 0, canvas.width, canvas.height);
  drawTruth(canvas);
  const image = images[current.number];
  const share = ((100 * image.truth) / (data.size[0] * data.size[1])).toFixed(1);
  find("#about-image").textContent = `${image.label}; the truth covers ${share} %`;
  canvas.setAttribute("aria-label", `Image ${image.id}, ${image.label}, with its truth outlined`);
}

// ---- which panels, which image

function makePanels() {
  const figures = chosenPanels().map((panel) => {
    const known = find(`[data-key="${CSS.escape(panel.key)}"]`);
    if (known) {
      known.dataset.slot = state.slots[panel.key];
      return known;
    }
    const slider = make("input", { type: "range", min: 0, max: panel.grid.length - 1, step: 1 });
    slider.setAttribute("aria-label", `Threshold of ${nameOf(panel)}`);
    slider.addEventListener("input", () => {
      state.cuts[panel.key] = Number(slider.value);
      if (current) drawPanel(panel);
      writeAddress();
    });
    slider.addEventListener("dblclick", () => reset([panel]));
    const track = make("div", { className: "track" }, slider);
    if (panel.own != null) {
      const mark = make("span", { className: "own-mark" });
      mark.style.left = `calc(8px + (100% - 16px) * ${panel.own / (panel.grid.length - 1)})`;
      track.append(mark);
    }
    const facts = [panel.control ? "control" : panel.model, panel.native && "own threshold"];
    if (panel.seed != null) facts.push(`seed ${panel.seed}`);
    const title = make("p", { className: "name" }, make("span", { className: "swatch", ariaHidden: "true" }), make("bdi", { textContent: panel.name }));
    const about = make("p", { className: "about" }, make("bdi", { textContent: facts.filter(Boolean).join(" · ") }));
    const numbers = make("p", { className: "numbers" }, "IoU ", make("b", { className: "iou" }), make("span", { className: "said" }));
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    const spark = draw("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" });
    const figure = make("figure", { className: "panel" }, canvas, make("figcaption", {}, title, about, numbers, spark, track));
    figure.dataset.key = panel.key;
    figure.dataset.slot = state.slots[panel.key];
    return figure;
  });
  find("#panels").replaceChildren(find(".truth"), ...figures);
}

function makeChips() {
  const chips = chosenPanels().map((panel) => {
    const button = make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${nameOf(panel)}` });
    button.addEventListener("click", () => choose(panel.key, false));
    const sample = draw("svg", { width: 26, height: 10, "aria-hidden": "true" });
    const slot = state.slots[panel.key];
    sample.append(draw("path", { class: `line slot-${slot}`, d: "M0 5H26", "stroke-dasharray": DASHES[slot] }));
    const chip = make("li", {}, sample, make("bdi", { textContent: nameOf(panel) }), button);
    return chip;
  });
  find("#chips").replaceChildren(...chips);
  const others = panels.filter((panel) => !state.chosen.includes(panel.key));
  const first = make("option", { textContent: chips.length < MOST ? "Add a row …" : `${MOST} rows at most`, value: "" });
  find("#add").replaceChildren(first, ...others.map((panel) => make("option", { textContent: nameOf(panel), value: panel.key })));
  find("#add").disabled = chips.length >= MOST;
}

function rankImages() {
  const scores = chosenPanels().map(scoresOf);
  const keys = images.map((_, i) => {
    const values = scores.map((score) => score[i]).filter((value) => value != null);
    if (state.order === "id" || !values.length) return state.order === "id" ? i : Infinity;
    if (state.order === "disputed") return Math.min(...values) - Math.max(...values);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return state.order === "best" ? -mean : mean;
  });
  ranking = images.map((_, i) => i).sort((a, b) => keys[a] - keys[b] || a - b);
}

function makeFilm() {
  const known = new Map(findAll("#film li").map((item) => [Number(item.dataset.image), item]));
  find("#film").replaceChildren(...ranking.map((i) => known.get(i) ?? frame(i)));
}

function frame(i) {
  const button = make("button", { type: "button", ariaLabel: `Image ${images[i].id}`, tabIndex: -1 });
  button.addEventListener("click", () => update({ image: i }));
  const item = make("li", {}, button);
  item.dataset.image = i;
  developing().observe(item);
  return item;
}

let observer = null;

// Frames get their pictures when they come near the part of the film that is seen.
function developing() {
  const develop = async (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      const picture = await pictureOf(target.dataset.image);
      picture.alt = "";
      find("button", target).append(picture);
    }
  };
  return (observer ??= new IntersectionObserver(develop, { root: find("#film"), rootMargin: "0px 600px" }));
}

async function showImage() {
  const wanted = state.image;
  const place = ranking.indexOf(wanted);
  for (const item of findAll("#film [aria-current]")) {
    item.removeAttribute("aria-current");
    item.tabIndex = -1;
  }
  const button = find(`#film [data-image="${wanted}"] button`);
  button.setAttribute("aria-current", "true");
  button.tabIndex = 0;
  centre(button.parentElement);
  if (find("#film").contains(document.activeElement)) button.focus({ preventScroll: true });
  const found = current?.number === wanted ? current : await decoded(wanted);
  if (state.image !== wanted) return; // another image was asked for meanwhile
  current = found;
  drawPicture();
  chosenPanels().forEach(drawPanel);
  const values = chosenPanels().map((panel) => `${nameOf(panel)} ${three(iouOf(panel))}`);
  const words = { worst: "worst first", best: "best first", disputed: "most disputed first", id: "as listed" };
  const where = find("#where");
  where.replaceChildren(make("b", {}, make("bdi", { textContent: images[wanted].id })), ` ${place + 1} of ${images.length}, ${words[state.order]}`);
  for (const near of [ranking[place + 1], ranking[place - 1]]) if (near !== undefined) decoded(near);
  where.append(make("span", { className: "unseen", textContent: `. IoU: ${values.join(", ")}` }));
}

// Bring a frame into the middle of the film without moving the page.
function centre(item) {
  const film = find("#film");
  film.scrollLeft = item.offsetLeft - film.offsetLeft - (film.clientWidth - item.offsetWidth) / 2;
}

function step(by) {
  const place = ranking.indexOf(state.image) + by;
  if (place >= 0 && place < ranking.length) update({ image: ranking[place] });
}

function reset(some) {
  for (const panel of some) delete state.cuts[panel.key];
  update({ cuts: state.cuts });
}

function shift(by) {
  for (const panel of chosenPanels())
    state.cuts[panel.key] = Math.max(0, Math.min(panel.grid.length - 1, cutOf(panel) + by));
  update({ cuts: state.cuts });
}

const keys = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  "[": () => shift(-3),
  "]": () => shift(3),
  t: () => update({ pick: state.pick === "top-k" ? "threshold" : "top-k" }),
  m: () => update({ show: state.show === "map" ? "image" : "map" }),
  r: () => reset(panels),
};

function startViewer() {
  find("#compare").hidden = false;
  const form = find("#view");
  find("#ids").append(...images.map((image) => make("option", { value: image.id })));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    if (target.name !== "goto") return update({ [target.name]: target.value });
    const image = images.findIndex((one) => one.id === target.value.trim());
    if (image >= 0) update({ image });
  });
  find("#previous").addEventListener("click", () => step(-1));
  find("#next").addEventListener("click", () => step(1));
  find("#reset").addEventListener("click", () => reset(panels));
  find("#add").addEventListener("change", ({ target }) => target.value && choose(target.value, true));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select, textarea, .board, .scroll");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  painters.push((changed) => {
    const any = (...names) => names.some((name) => changed.includes(name));
    for (const name of ["order", "pick", "show"]) if (any(name)) form.elements[name].value = state[name];
    if (any("chosen")) [makeChips, makePanels].forEach((build) => build());
    if (any("chosen", "order", "pick")) {
      rankImages();
      makeFilm();
      if (state.image == null || (any("order") && !any("image"))) state.image = ranking[0];
    }
    if (any("chosen", "order", "pick", "image", "show", "cuts")) showImage();
  });
}

// ---- the start

function startTheme() {
  const button = find("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => (button.textContent = isDark() ? "Light" : "Dark");
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();
}

startTheme();
startBoard();
if (images.length) {
  startCurves();
  startViewer();
}
function open() {
  if (location.hash && !location.hash.includes("=")) return; // a place on the page, not what it shows
  update({ ...readAddress(), score: state.score, query: state.query, controls: state.controls });
}
addEventListener("hashchange", open);
open();
