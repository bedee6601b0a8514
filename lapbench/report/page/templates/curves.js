// IoU by threshold and by size of the truth, as lines of the rows that are compared.

const TALL = 300, LEFT = 34, RIGHT = 10, TOP = 10, BOTTOM = 36;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2"]; // a colour is never the only mark

// Near zero, where the maps of gradients are, the axis is stretched.
const stretch = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));

function chart(figure, { from, to, ticks, label, top }) {
  find("svg", figure)?.remove();
  const wide = Math.max(240, figure.clientWidth - 32); // without its padding: text keeps its size
  const x = (value) => LEFT + ((wide - LEFT - RIGHT) * (value - from)) / (to - from);
  const y = (value) => TALL - BOTTOM - ((TALL - TOP - BOTTOM) * value) / top;
  const svg = draw("svg", { width: wide, height: TALL, role: "img" });
  const step = top > 0.6 ? 0.2 : top > 0.25 ? 0.1 : 0.05;
  for (let value = 0; value <= top + 1e-9; value += step) {
    svg.append(draw("path", { class: "grid", d: `M${LEFT} ${y(value)}H${wide - RIGHT}` }));
    svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, class: "end" }, value.toFixed(top > 0.25 ? 1 : 2)));
  }
  for (const [value, text] of ticks)
    svg.append(draw("text", { x: x(value), y: TALL - BOTTOM + 16, class: "middle" }, text));
  svg.append(draw("text", { x: (LEFT + wide - RIGHT) / 2, y: TALL - 5, class: "middle axis" }, label));
  figure.prepend(svg);
  const back = (across) => from + ((to - from) * (across - LEFT)) / (wide - LEFT - RIGHT);
  return { svg, x, y, back };
}

function line(points, attributes) {
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return draw("path", { d: path, ...attributes });
}

const chosenPanels = () => state.chosen.map((key) => panelOf.get(key));
const highest = (values) => Math.max(...values.filter((value) => value != null), 0.05);

function drawByThreshold() {
  const figure = find("#by-threshold");
  const chosen = chosenPanels();
  const lowest = Math.min(0, ...chosen.map((panel) => (panel.own == null ? 0 : panel.grid[panel.own])));
  const from = stretch(lowest);
  const ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1].map((value) => [stretch(value), String(value)]);
  if (lowest < -0.01) ticks.unshift([from, lowest.toFixed(2).replace("-", "−")]);
  const contestants = panels.filter((panel) => !panel.control);
  const top = Math.min(1, 1.05 * highest([...contestants, ...chosen].flatMap((panel) => panel.curve)));
  const { svg, x, y, back } = chart(figure, { from, to: 1, ticks, label: "threshold", top });
  const points = (panel) =>
    panel.grid
      .map((value, k) => [x(stretch(value)), y(panel.curve[k] ?? 0)])
      .filter(([across]) => across >= x(from) - 0.01);
  for (const panel of contestants)
    if (!chosen.includes(panel)) svg.append(line(points(panel), { class: "other" }));
  for (const panel of chosen) {
    const slot = state.slots[panel.key];
    svg.append(line(points(panel), { class: `line slot-${slot}`, "stroke-dasharray": DASHES[slot] }));
  }
  for (const panel of chosen) {
    if (panel.own == null) continue;
    const [cx, cy] = [x(stretch(panel.grid[panel.own])), y(panel.curve[panel.own])];
    svg.append(draw("circle", { cx, cy, r: 4.5, class: `dot slot-${state.slots[panel.key]}` }));
  }
  const told = chosen.filter((panel) => panel.own != null);
  const said = told.map((p) => `${nameOf(p)}: ${three(p.curve[p.own])} at ${three(p.grid[p.own])}`);
  svg.setAttribute("aria-label", `Mean IoU by threshold. ${said.join("; ")}`);
  readOut(figure, svg, (across) => {
    const value = Math.max(from, Math.min(1, back(across)));
    const threshold = Math.sign(value) * value * value;
    const texts = chosen.map((p) => `${nameOf(p)} ${three(p.curve[nearest(p.grid, threshold)])}`);
    return `At ${three(threshold)}: ${texts.join(" · ")}`;
  });
}

const GROUPS = 5;

// Mean IoU of the images in groups of the same number, by how much of the image the truth covers.
function bySize(panel) {
  const scores = state.pick === "top-k" ? panel.topK : panel.iou;
  const order = images.map((_, i) => i).filter((i) => scores[i] != null);
  order.sort((a, b) => images[a].truth - images[b].truth || a - b);
  const groups = [];
  for (let g = 0; g < GROUPS; g++) {
    const members = order.slice((order.length * g) / GROUPS, (order.length * (g + 1)) / GROUPS);
    if (!members.length) continue;
    const mean = (value) => members.reduce((sum, i) => sum + value(i), 0) / members.length;
    groups.push({ size: mean((i) => images[i].truth) / (data.size[0] * data.size[1]), iou: mean((i) => scores[i]) });
  }
  return groups;
}

function drawBySize() {
  const figure = find("#by-size");
  const chosen = chosenPanels().map((panel) => [panel, bySize(panel)]);
  const groups = chosen.map(([, found]) => found).find((found) => found.length) ?? [];
  const top = Math.min(1, 1.08 * highest(chosen.flatMap(([, found]) => found.map((group) => group.iou))));
  const ticks = groups.map((group, g) => [g, `${(100 * group.size).toFixed(1)} %`]);
  const label = "share of the image that the truth covers";
  const { svg, x, y, back } = chart(figure, { from: -0.3, to: GROUPS - 0.7, ticks, label, top });
  for (const [panel, found] of chosen) {
    const slot = state.slots[panel.key];
    const points = found.map((group, g) => [x(g), y(group.iou)]);
    svg.append(line(points, { class: `line slot-${slot}`, "stroke-dasharray": DASHES[slot] }));
    for (const [cx, cy] of points) svg.append(draw("circle", { cx, cy, r: 3.5, class: `dot slot-${slot}` }));
  }
  const said = chosen.map(([p, found]) => `${nameOf(p)}: ${found.map((group) => three(group.iou)).join(", ")}`);
  svg.setAttribute("aria-label", `Mean IoU from the smallest truth to the largest. ${said.join("; ")}`);
  readOut(figure, svg, (across) => {
    const g = Math.max(0, Math.min(groups.length - 1, Math.round(back(across))));
    return chosen.map(([p, found]) => `${nameOf(p)} ${three(found[g]?.iou)}`).join(" · ");
  });
}

// Say the numbers under the pointer in the figure's caption.
function readOut(figure, svg, say) {
  const output = find("output", figure);
  output.textContent = "";
  svg.addEventListener("pointermove", (event) => {
    output.textContent = say(event.clientX - svg.getBoundingClientRect().left);
  });
  svg.addEventListener("pointerleave", () => (output.textContent = ""));
}

function drawGaps() {
  const lines = chosenPanels().map((panel) => {
    const best = panel.curve.indexOf(highest(panel.curve));
    const own = panel.own == null ? [null, null] : [panel.grid[panel.own], panel.curve[panel.own]];
    const cells = [...own, best < 0 ? null : panel.grid[best], best < 0 ? null : panel.curve[best]];
    const name = make("th", { scope: "row", textContent: nameOf(panel) });
    return make("tr", {}, name, ...cells.map((v) => make("td", { className: "number", textContent: three(v) })));
  });
  find("#gaps tbody").replaceChildren(...lines);
}

function startCurves() {
  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (width && contentRect.width !== width) [drawByThreshold, drawBySize].forEach((drawing) => drawing());
    width = contentRect.width;
  }).observe(find("#by-threshold"));
  painters.push((changed) => {
    if (changed.includes("chosen")) drawByThreshold();
    if (changed.includes("chosen")) drawGaps();
    if (changed.includes("chosen") || changed.includes("pick")) drawBySize();
  });
}
