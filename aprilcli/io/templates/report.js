"use strict";
// Text of files reaches the page only as textContent, attributes that are not run, and data URIs made by the program.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const rows = data.rows.map((cells) => Object.fromEntries(data.columns.map((name, i) => [name, cells[i]])));
const BATCH = 100; // rows added to the table at a time
const MAX_ZOOM = 40;
const PRINTED = 1000; // rows of the table on paper
let view = rows.map((_, i) => i); // the rows that are shown or stepped through, in order

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Control characters, such as those that turn the direction of text, are shown by their numbers.
function shown(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (char) => {
    const code = char.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) return "\\x" + (code - 0xdc00).toString(16); // a byte that is not UTF-8
    return "\\u" + code.toString(16).padStart(4, "0");
  });
}

const digits = (value, count) => (value === null ? "" : value.toFixed(count));
const probability = (value) => (value === null ? "" : value >= 0.001 ? value.toFixed(3) : value.toExponential(1));

// The small images follow this script in the page, so that the table does not wait for them.
function preview(index) {
  const block = byId("p" + index);
  if (block) return JSON.parse(block.textContent);
  const isLoading = document.readyState === "loading";
  return { size: [1, 1], image: null, layer: null, note: isLoading ? "The page is still loading." : data.no_preview };
}

function fillTile(tile) {
  if (tile.childElementCount || !tile.isConnected) return;
  const { image, layer } = preview(Number(tile.dataset.preview));
  for (const source of [image, layer]) {
    if (!source) continue;
    const img = element("img");
    img.alt = "";
    img.decoding = "async";
    img.src = source;
    tile.append(img);
  }
}

const tiles = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) fillTile(entry.target);
    else entry.target.replaceChildren(); // memory of decoded images stays small
  }
}, { rootMargin: "300px" });

function tileOf(index) {
  const tile = element("span", "tile");
  tile.dataset.preview = index;
  tiles.observe(tile);
  return tile;
}

addEventListener("beforeprint", () => {
  if (table && rendered < PRINTED) renderMore(PRINTED - rendered);
  tiles.disconnect(); // it would empty those that are out of sight
  document.querySelectorAll(".tile").forEach(fillTile);
  for (const img of document.images) img.decoding = "sync";
});
addEventListener("afterprint", () => document.querySelectorAll(".tile").forEach((tile) => tiles.observe(tile)));

document.addEventListener("DOMContentLoaded", () => {
  for (const tile of document.querySelectorAll(".tile:empty")) {
    tiles.unobserve(tile);
    tiles.observe(tile);
  }
  if (viewer.open) show(current);
});

// Labels

const labels = new Map();
const storageName = "aprilcli labels " + data.id;
let canStore = true;
try {
  for (const [path, label] of JSON.parse(localStorage.getItem(storageName) || "[]")) labels.set(path, label);
} catch {
  canStore = false;
}
const LABEL_TEXTS = { defect: "defect", good: "false alarm" };

function setLabel(index, label) {
  const path = rows[index].path;
  if (label) labels.set(path, label);
  else labels.delete(path);
  try {
    localStorage.setItem(storageName, JSON.stringify([...labels]));
  } catch {
    canStore = false;
  }
  showLabels(index);
}

function showLabels(index) {
  if (!byId("save")) return;
  const count = labels.size;
  byId("save").disabled = !count;
  byId("label-count").textContent = count === 1 ? "1 image labeled" : count + " images labeled";
  byId("storage-note").textContent = canStore ? "" :
    "This browser keeps no labels of this page: save them before you close it.";
  const row = document.querySelector(`#table tr[data-index="${index}"]`);
  if (row) fillLabel(row.querySelector(".label"), index);
  if (index >= 0 && index === current) {
    for (const button of document.querySelectorAll("[data-label]")) {
      button.setAttribute("aria-pressed", String(labels.get(rows[index].path) === button.dataset.label));
    }
  }
}

function fillLabel(cell, index) {
  const label = labels.get(rows[index].path);
  cell.replaceChildren(...(label ? [element("span", "badge " + label, LABEL_TEXTS[label])] : []));
}

// UTF-8; a lone surrogate stands for a byte of a name that is not UTF-8.
function encoded(text) {
  const encoder = new TextEncoder();
  return [...text].map((char) => {
    const code = char.codePointAt(0);
    return code >= 0xdc80 && code <= 0xdcff ? new Uint8Array([code - 0xdc00]) : encoder.encode(char);
  });
}

function saveLabels() {
  const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
  const lines = rows.filter((row) => labels.has(row.path)).map((row) => quoted(row.path) + "," + labels.get(row.path));
  const link = element("a");
  const blob = new Blob(encoded(["path,label", ...lines, ""].join("\r\n")), { type: "text/csv" });
  link.href = URL.createObjectURL(blob);
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

addEventListener("beforeunload", (event) => {
  if (!canStore && labels.size) event.preventDefault();
});

const LABEL_KEYS = { d: "defect", f: "good", u: null };

function labelKey(event, index) {
  if (!byId("save") || !(event.key in LABEL_KEYS) || event.ctrlKey || event.metaKey || event.altKey) return false;
  setLabel(index, LABEL_KEYS[event.key]);
  return true;
}

// The table

const badge = (row) => element("span", "badge " + row.kind, row.kind === "scored" ? "" : row.kind);
const level = (text) => (text ? element("small", "", " / " + text) : "");
const COLUMNS = [
  { name: "path", title: "Image", hint: "Path below the scanned folder" },
  { name: "score", title: "Score", number: true, hint: "The higher, the more anomalous",
    cell: (row) => (row.score === null ? [] : [digits(row.score, 4)]) },
  { name: "p_value", title: "p-value", number: true, ifAny: true, first: "ascending",
    hint: "How often good images score at least this high: small means unlike them",
    cell: (row) => [probability(row.p_value)] },
  { name: "kind", title: "Verdict", first: "ascending", hidden: rows.every((row) => row.kind === "scored"),
    cell: (row) => [badge(row)] },
  { name: "cause", title: "Cause", ifAny: true, hint: "What raised the score above good images: the text score, or the map",
    cell: (row) => [row.cause || ""] },
  { name: "map_max", title: "Map peak", number: true, ifAny: true,
    hint: "The highest value of the map / the value from which places are regions",
    cell: (row) => (row.map_max === null ? [] : [digits(row.map_max, 2), level(data.pixel_text)]) },
  { name: "regions", title: "Regions", number: true, ifAny: true, hint: "Connected places above the alarm level of the map",
    cell: (row) => [row.regions === null ? "" : String(row.regions)] },
  { name: "label", title: "Label", hint: "Your own labels",
    key: (row) => labels.get(row.path) || null, cell: () => [] },
].filter((column) => !column.hidden && (!column.ifAny || rows.some((row) => row[column.name] !== null)));
const RANKS = { unrecognised: 0, anomalous: 1, normal: 2, scored: 3, unreadable: 4 };
const table = byId("table");
const body = table && table.tBodies[0];
const collator = new Intl.Collator("en", { numeric: true });
const sorting = { column: COLUMNS[1], direction: "descending" };
let rendered = 0;

function makeRow(index) {
  const row = rows[index];
  const line = element("tr");
  line.dataset.index = index;
  line.tabIndex = -1;
  const thumb = element("td", "thumb");
  thumb.append(tileOf(index));
  line.append(thumb);
  for (const column of COLUMNS) {
    const cell = element("td", column.name + (column.number ? " number" : ""));
    if (column.name === "path") {
      cell.append(element("bdi", "", shown(row.path)));
      if (row.error) cell.append(element("br"), element("small", "", shown(row.error)));
    } else if (column.name === "label") fillLabel(cell, index);
    else cell.append(...column.cell(row));
    line.append(cell);
  }
  return line;
}

function renderMore(count = BATCH) {
  const end = Math.min(rendered + count, view.length);
  const lines = document.createDocumentFragment();
  for (; rendered < end; rendered++) lines.append(makeRow(view[rendered]));
  body.append(lines);
  byId("more").hidden = rendered === view.length;
}

function refresh() {
  const { column, direction } = sorting;
  const key = column.key || ((row) => row[column.name]);
  const sign = direction === "ascending" ? 1 : -1;
  const text = byId("search").value.trim().toLowerCase();
  const [verdict, folder] = [byId("verdict").value, byId("folder").value];
  const [low, high] = ["score-low", "score-high"].map((id) => (byId(id).value === "" ? null : Number(byId(id).value)));
  view = rows.map((_, i) => i).filter((i) => {
    const row = rows[i];
    return (!text || row.path.toLowerCase().includes(text)) &&
      (!verdict || (verdict === "labeled" ? labels.has(row.path) : row.kind === verdict)) &&
      (!folder || row.path.startsWith(folder)) &&
      (low === null || (row.score !== null && row.score >= low)) &&
      (high === null || (row.score !== null && row.score <= high));
  });
  view.sort((i, j) => {
    const [a, b] = [key(rows[i]), key(rows[j])];
    if (a === null || b === null) return (a === null) - (b === null) || i - j; // empty cells last in both directions
    if (column.name === "kind") return sign * (RANKS[a] - RANKS[b]) || i - j;
    return sign * (typeof a === "string" ? collator.compare(a, b) : a - b) || i - j;
  });
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.column === column.name) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  }
  for (const button of document.querySelectorAll(".count")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
  byId("shown").textContent = view.length === rows.length ? `${rows.length} images` :
    `${view.length} of ${rows.length} images`;
  for (const tile of body.querySelectorAll(".tile")) tiles.unobserve(tile);
  body.replaceChildren();
  table.parentElement.scrollTop = 0;
  rendered = 0;
  renderMore();
  if (body.rows.length) body.rows[0].tabIndex = 0;
}

function focusRow(position) {
  while (position >= rendered && rendered < view.length) renderMore();
  const line = body.rows[Math.max(0, Math.min(position, rendered - 1))];
  if (!line) return;
  for (const other of body.querySelectorAll('tr[tabindex="0"]')) other.tabIndex = -1;
  line.tabIndex = 0;
  line.focus();
  line.scrollIntoView({ block: "nearest" });
}

function tableKey(event) {
  const line = event.target.closest("tbody tr");
  if (!line) return;
  const position = line.sectionRowIndex;
  const target = {
    ArrowDown: position + 1, ArrowUp: position - 1, PageDown: position + 10, PageUp: position - 10,
    Home: 0, End: rendered - 1,
  }[event.key];
  if (target !== undefined) focusRow(target);
  else if (event.key === "Enter" || event.key === " ") openViewer(view[position], () => focusRow(view.indexOf(current)));
  else if (!labelKey(event, view[position])) return;
  event.preventDefault();
}

function folders() {
  const levels = [new Set(), new Set()]; // all folders, and those at the top
  for (const { path } of rows) {
    for (let end = path.indexOf("/"); end >= 0; end = path.indexOf("/", end + 1)) {
      levels[0].add(path.slice(0, end + 1));
      if (!path.slice(0, end).includes("/")) levels[1].add(path.slice(0, end + 1));
    }
  }
  return [...(levels.find((found) => found.size <= 300) || [])].sort(collator.compare);
}

function addOption(select, value, text) {
  const option = element("option", "", text);
  option.value = value;
  select.append(option);
}

function startTable() {
  const head = table.tHead.rows[0];
  const image = element("th", "thumb");
  image.append(element("span", ""));
  image.setAttribute("aria-label", "Preview");
  head.append(image);
  for (const column of COLUMNS) {
    const cell = element("th", column.name + (column.number ? " number" : ""));
    cell.scope = "col";
    cell.dataset.column = column.name;
    const button = element("button", "", column.title);
    button.type = "button";
    if (column.hint) button.title = column.hint;
    button.addEventListener("click", () => {
      const first = column.first || (column.number ? "descending" : "ascending");
      const other = first === "ascending" ? "descending" : "ascending";
      sorting.direction = sorting.column === column && sorting.direction === first ? other : first;
      sorting.column = column;
      refresh();
    });
    cell.append(button);
    head.append(cell);
  }
  const kinds = new Set(rows.map((row) => row.kind));
  for (const kind of Object.keys(RANKS)) if (kinds.has(kind)) addOption(byId("verdict"), kind, kind);
  addOption(byId("verdict"), "labeled", "labeled by you");
  const found = folders();
  byId("folder-label").hidden = !found.length;
  for (const folder of found) addOption(byId("folder"), folder, shown(folder));
  byId("filters").addEventListener("input", refresh);
  byId("filters").addEventListener("reset", () => setTimeout(refresh));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll(".count")) {
    button.addEventListener("click", () => {
      byId("verdict").value = byId("verdict").value === button.dataset.verdict ? "" : button.dataset.verdict;
      refresh();
    });
  }
  body.addEventListener("keydown", tableKey);
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (line) openViewer(view[line.sectionRowIndex], () => focusRow(view.indexOf(current)));
  });
  byId("more").addEventListener("click", () => renderMore());
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && rendered < view.length) renderMore();
  }, { root: null, rootMargin: "600px" }).observe(byId("more"));
  table.parentElement.addEventListener("scroll", ({ target }) => {
    if (target.scrollHeight - target.scrollTop - target.clientHeight < 1500 && rendered < view.length) renderMore();
  }, { passive: true });
  byId("save").addEventListener("click", saveLabels);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !viewer.open && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  refresh();
  showLabels(-1);
}

// The viewer

const viewer = byId("viewer");
const [stage, canvas, marks] = [byId("stage"), byId("canvas"), byId("marks")];
const place = { x: 0, y: 0, scale: 1, fit: 1, width: 1, height: 1 };
const pointers = new Map();
let current = -1;
let onClosed = () => {};

function openViewer(index, closed) {
  onClosed = closed;
  if (!viewer.open) viewer.showModal();
  show(index);
  stage.focus();
}

function show(index) {
  current = index;
  const row = rows[index];
  const { size, image, layer, note } = preview(index);
  byId("viewer-title").textContent = shown(row.path);
  byId("viewer-title").title = shown(row.path);
  const position = view.indexOf(index);
  byId("viewer-position").textContent = `${position + 1} of ${view.length}`;
  byId("previous").disabled = position <= 0;
  byId("next").disabled = position >= view.length - 1;
  for (const [id, source] of [["image", image], ["layer", layer]]) {
    byId(id).hidden = !source;
    if (source) byId(id).src = source;
    else byId(id).removeAttribute("src");
  }
  byId("image").alt = image ? shown(row.path) : "";
  byId("opacity").disabled = !layer;
  byId("viewer-note").textContent = note || "";
  [place.width, place.height] = size;
  const facts = byId("facts");
  facts.replaceChildren();
  for (const [name, value] of factsOf(row)) {
    if (value === null || value === "") continue;
    const content = element("dd");
    content.append(value);
    facts.append(element("dt", "", name), content);
  }
  drawMarks(row, Boolean(image));
  fit();
  showLabels(index);
}

function factsOf(row) {
  if (data.kind === "eval") return row.facts;
  const listed = element("span");
  row.boxes.forEach(([, , , , peak], i) => listed.append(i ? ", " : "", `${i + 1}: ${peak.toFixed(2)}`));
  if (row.regions > row.boxes.length) listed.append(", \u2026");
  return [
    ["Verdict", row.kind === "scored" ? null : badge(row)],
    ["Cause", row.cause],
    ["Score", row.score === null ? null : digits(row.score, 4)],
    ["Threshold", data.threshold_text],
    ["p-value", probability(row.p_value)],
    ["Map peak", row.map_max === null ? null : `${digits(row.map_max, 4)} at ${row.peak_x}, ${row.peak_y}`],
    ["Alarm from", row.map_max === null ? null : data.pixel_text],
    ["Regions", row.regions === null ? null : row.regions ? listed : "none"],
    ["Size", row.width ? `${row.width} \u00d7 ${row.height}` : null],
    ["Error", row.error && shown(row.error)],
  ];
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawMarks(row, hasImage) {
  marks.replaceChildren();
  marks.setAttribute("viewBox", `0 0 ${place.width} ${place.height}`);
  const room = Math.max(place.width, place.height) / 150; // between a region and its box
  for (const [i, box] of (hasImage && row.boxes ? row.boxes : []).entries()) {
    const [x, y, width, height] = [box[0] - room, box[1] - room, box[2] + 2 * room, box[3] + 2 * room];
    for (const className of ["edge", ""]) marks.append(svg("rect", { x, y, width, height, class: className }));
    marks.append(svg("text", { x, y }, String(i + 1)));
  }
}

function fit() {
  const { clientWidth, clientHeight } = stage;
  place.fit = Math.min((clientWidth - 24) / place.width, (clientHeight - 24) / place.height);
  place.scale = place.fit;
  place.x = (clientWidth - place.width * place.scale) / 2;
  place.y = (clientHeight - place.height * place.scale) / 2;
  applyPlace();
}

function applyPlace() {
  const { x, y, scale, fit: whole, width, height } = place;
  canvas.style.width = width * whole + "px"; // at the size of the whole image, so that images are sharp there
  canvas.style.height = height * whole + "px";
  canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale / whole})`;
  for (const text of marks.querySelectorAll("text")) {
    text.setAttribute("font-size", 13 / scale);
    text.setAttribute("stroke-width", 3 / scale);
    text.setAttribute("dy", -5 / scale);
  }
}

function zoom(factor, atX = stage.clientWidth / 2, atY = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(place.scale * factor, place.fit), place.fit * MAX_ZOOM);
  if (scale === place.fit) return fit();
  const ratio = scale / place.scale;
  place.x = atX - (atX - place.x) * ratio;
  place.y = atY - (atY - place.y) * ratio;
  place.scale = scale;
  return move(0, 0);
}

// The image never leaves the stage: its middle stays inside.
function move(x, y) {
  const inside = (value, size, room) => Math.min(Math.max(value, room / 2 - size), room / 2);
  place.x = inside(place.x + x, place.width * place.scale, stage.clientWidth);
  place.y = inside(place.y + y, place.height * place.scale, stage.clientHeight);
  applyPlace();
}

function step(by) {
  const index = view[view.indexOf(current) + by];
  if (index !== undefined) show(index);
}

function setOpacity(value) {
  byId("opacity").value = value;
  byId("layer").style.opacity = value / 100;
  marks.style.opacity = value > 0 ? 1 : 0;
}

const VIEWER_KEYS = {
  ArrowLeft: (event) => (event.shiftKey ? move(60, 0) : step(-1)),
  ArrowRight: (event) => (event.shiftKey ? move(-60, 0) : step(1)),
  ArrowUp: (event) => (event.shiftKey ? move(0, 60) : step(-1)),
  ArrowDown: (event) => (event.shiftKey ? move(0, -60) : step(1)),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: () => fit(),
  m: () => setOpacity(Number(byId("opacity").value) > 0 ? 0 : 100),
};

viewer.addEventListener("keydown", (event) => {
  if (event.target.type === "range" && /Arrow|Home|End/.test(event.key)) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in VIEWER_KEYS) VIEWER_KEYS[event.key](event);
  else if (!labelKey(event, current)) return;
  event.preventDefault();
});
viewer.addEventListener("close", () => onClosed());
byId("close").addEventListener("click", () => viewer.close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("zoom-in").addEventListener("click", () => zoom(1.5));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
byId("zoom-fit").addEventListener("click", fit);
byId("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
for (const button of document.querySelectorAll("[data-label]")) {
  button.addEventListener("click", () => {
    const isSet = labels.get(rows[current].path) === button.dataset.label;
    setLabel(current, isSet ? null : button.dataset.label);
  });
}
addEventListener("resize", () => viewer.open && fit());
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / (event.deltaMode ? 15 : 400)), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
stage.addEventListener("dblclick", (event) => {
  if (!event.target.closest(".zoom")) fit();
});
stage.addEventListener("pointerdown", (event) => {
  if (event.target.closest(".zoom")) return;
  stage.setPointerCapture(event.pointerId);
  stage.classList.add("moving");
  pointers.set(event.pointerId, event);
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
  if (other) { // two fingers
    const distance = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
    const box = stage.getBoundingClientRect();
    zoom(distance(event) / Math.max(1, distance(before)), other.clientX - box.left, other.clientY - box.top);
  } else move(event.clientX - before.clientX, event.clientY - before.clientY);
  pointers.set(event.pointerId, event);
});
for (const type of ["pointerup", "pointercancel"]) {
  stage.addEventListener(type, (event) => {
    pointers.delete(event.pointerId);
    if (!pointers.size) stage.classList.remove("moving");
  });
}

// An evaluation has cards instead of a table.
for (const card of document.querySelectorAll(".cards button")) {
  const index = Number(card.dataset.index);
  card.prepend(tileOf(index));
  card.addEventListener("click", () => openViewer(index, () => {
    const shownLast = document.querySelector(`.cards [data-index="${current}"]`);
    if (shownLast) shownLast.focus();
  }));
}
if (table) startTable();
