// The leaderboard: which ranking, which score, in which order, and which rows are compared.

const boards = findAll(".board");
const tools = find("#tools");
const LOSSES = new Set(["threshold_gap"]); // scores of which less is better
const FIRST = 24; // rows of a long ranking that are shown before all of them are asked for
const sorting = boards.map(() => ({ by: "score", down: true }));

// Whether a row is the oracle, which knows the truth.
const knowing = ([scores]) => scores.iou[0] > 0.999;

// Where the drawing of a score begins and ends: zero and everything but the oracle fit.
function domain(score) {
  const lines = data.boards.flat().filter((line) => !knowing(line));
  const values = lines.flatMap(([scores]) => scores[score] ?? []).filter((value) => value != null);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-9)];
  return [low, high > 0.9 && high <= 1 ? 1 : high * 1.04];
}

function drawScores() {
  const [low, high] = domain(state.score);
  const at = (value) => (100 * (value - low)) / (high - low);
  const label = find(`[name=score] option[value="${CSS.escape(state.score)}"]`).textContent;
  boards.forEach((board, b) => {
    find("[data-sort=score] button", board).textContent = label;
    drawScale(find(".scale", board), low, high);
    const lines = findAll("tbody tr", board);
    const known = lines
      .filter((line) => line.classList.contains("control") && !LOSSES.has(state.score))
      .map((line) => data.boards[b][line.dataset.row])
      .filter((known) => !knowing(known))
      .map(([scores]) => scores[state.score]?.[0])
      .filter((mean) => mean != null);
    for (const line of lines) {
      const [scores, random] = data.boards[b][line.dataset.row];
      const [mean, from, to] = scores[state.score] ?? [null, null, null];
      find(".score b", line).textContent = three(mean);
      find(".score small", line).textContent = from == null ? "" : `${three(from)} to ${three(to)}`;
      find("td.random", line).textContent = three(random[state.score]);
      find(".zone", line).setAttribute("width", known.length ? Math.max(0, at(Math.max(...known))) : 0);
      find(".interval", line).setAttribute("d", from == null || mean > high ? "" : `M${at(from)} 5H${at(to)}`);
      find("path.random", line).setAttribute("d", random[state.score] == null ? "" : `M${at(random[state.score])} 5h0`);
      find(".mean", line).setAttribute("d", mean == null || mean > high ? "" : `M${at(mean)} 5h0`);
    }
  });
}

function drawScale(scale, low, high) {
  const most = Math.max(2, Math.min(6, (scale.clientWidth || 300) / 44)); // numbers that stand side by side
  const step = [0.05, 0.1, 0.2, 0.5, 1].find((size) => (high - low) / size <= most) ?? (high - low) / 2;
  scale.replaceChildren();
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) {
    const mark = make("span", { textContent: String(+value.toFixed(2)) });
    mark.style.left = `${(100 * (value - low)) / (high - low)}%`;
    scale.append(mark);
  }
}

function sortBoard(b) {
  const { by, down } = sorting[b];
  const value = (line) => {
    const [scores, random] = data.boards[b][line.dataset.row];
    if (by === "score") return scores[state.score]?.[0];
    if (by === "random") return random[state.score];
    const text = line.dataset[by];
    return by === "explainer" || by === "model" ? text : text === "" ? null : Number(text);
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const lines = findAll("tbody tr", boards[b]).map((line) => [value(line), line]);
  lines.sort(([x, a], [y, b]) => {
    if (x == null || y == null) return (x == null) - (y == null); // what has no value stands last
    return (down ? -1 : 1) * compare(x, y) || a.dataset.row - b.dataset.row;
  });
  find("tbody", boards[b]).append(...lines.map(([, line]) => line));
  for (const head of findAll("[data-sort]", boards[b])) {
    if (head.dataset.sort === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function filterBoard() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  boards.forEach((board, b) => {
    board.hidden = b !== state.board;
    const lines = findAll("tbody tr", board);
    const found = lines.filter((line) => {
      const text = [line.dataset.explainer, line.dataset.model, find(".notes", line).textContent, line.className];
      const named = words.every((word) => text.join(" ").toLowerCase().includes(word));
      return named && (state.controls || !line.classList.contains("control"));
    });
    const long = !state.all && !words.length && found.length > 1.3 * FIRST;
    const shown = new Set(long ? found.slice(0, FIRST) : found);
    for (const line of lines) line.hidden = !shown.has(line);
    find(".more", board).hidden = !long;
    find(".more", board).textContent = `Show all ${found.length} rows`;
    if (b === state.board)
      find("#found").textContent = found.length === lines.length ? "" : `${found.length} of ${lines.length} rows`;
  });
}

function markChosen() {
  for (const line of findAll("tbody tr[data-panel]")) {
    const slot = state.slots[line.dataset.panel];
    const box = find(".choose", line);
    box.checked = slot !== undefined;
    box.disabled = !box.checked && state.chosen.length >= MOST;
    line.dataset.slot = slot ?? "";
  }
}

function startBoard() {
  tools.hidden = false;
  for (const board of boards) board.classList.add("live");
  boards.forEach((board, b) => {
    for (const head of findAll("[data-sort]", board)) {
      const button = make("button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const by = head.dataset.sort;
        const rising = ["rank", "explainer", "model", "group"].includes(by);
        sorting[b] = { by, down: sorting[b].by === by ? !sorting[b].down : !rising };
        sortBoard(b);
        filterBoard();
      });
    }
    find(".more", board).addEventListener("click", () => update({ all: true }));
    for (const kind of ["pointerover", "pointerleave", "focusin", "focusout"])
      board.addEventListener(kind, ({ type, target }) => {
        const line = type === "pointerover" || type === "focusin" ? target.closest("tbody tr") : null;
        const group = line?.dataset.group;
        for (const other of findAll("tbody tr", board))
          other.classList.toggle("kin", Boolean(group) && other.dataset.group === group);
      });
    board.addEventListener("change", (event) => {
      if (event.target.matches(".choose")) choose(event.target.closest("tr").dataset.panel, event.target.checked);
    });
  });
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    const { name, value, checked } = event.target;
    update({ [name]: name === "board" ? Number(value) : name === "controls" ? checked : value });
  });
  painters.push((changed) => {
    const any = (...names) => names.some((name) => changed.includes(name));
    if (any("board") && tools.elements.board) tools.elements.board.value = state.board;
    if (any("score")) boards.forEach((_, b) => sortBoard(b));
    if (any("score", "board", "query", "controls", "all")) filterBoard();
    if (any("score", "board")) drawScores(); // when it is seen: its scale is as wide as there is room
    if (any("chosen")) markChosen();
  });
}
