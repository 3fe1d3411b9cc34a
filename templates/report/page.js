"use strict";
// Puts the plots and the tables of each model into its section, and redraws what a choice changes.

const data = JSON.parse(document.getElementById("data").textContent);
const NOTHING = {
  curves: "no load point has this figure", ttft: "no stream was measured at this load", itl: "no stream was measured at this load",
  accuracy: "none of these engines was evaluated: doit eval", memory: "the server's memory was not measured", history: "no runs",
};

function options(select, names, label) {
  for (const name of names) select.add(new Option(label(name), name));
}

function draw(section, whole, kinds) {
  const model = { ...whole, variants: whole.variants.filter((variant) => !whole.hidden.has(variant.name)) };
  const chosen = Object.fromEntries(["latency", "load", "score"].map((name) => [name, section.querySelector(`.${name}`).value]));
  for (const kind of kinds) {
    const place = section.querySelector(`[data-plot="${kind}"]`);
    const made = PLOTS[kind](model, chosen);
    if (made.traces.some((trace) => trace.x.length)) {
      place.classList.remove("empty");
      Plotly.react(place, made.traces, made.layout, { responsive: true, displayModeBar: false });
    } else {
      Plotly.purge(place);
      place.classList.add("empty");
      place.textContent = NOTHING[kind];
    }
  }
}

// A button per variant, which shows its line and takes it out of every plot of the section.
function chips(section, model) {
  for (const variant of model.variants) {
    const { colour, dash, label } = model.style[variant.name];
    const button = Object.assign(document.createElement("button"), { type: "button", title: variant.name });
    const strokes = { solid: "none", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4" };
    button.innerHTML = `<svg width="26" height="10"><path d="M0 5H26" stroke="${colour}" stroke-width="2.5" stroke-dasharray="${strokes[dash]}"/></svg>`;
    button.append(label);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!model.hidden.delete(variant.name)) model.hidden.add(variant.name);
      button.setAttribute("aria-pressed", String(!model.hidden.has(variant.name)));
      draw(section, model, Object.keys(PLOTS));
    });
    section.querySelector(".chips").append(button);
  }
}

function setUp(section) {
  const model = data.models[Number(section.dataset.model)];
  Object.assign(model, { style: styles(model), hidden: new Set() });
  chips(section, model);
  const points = model.variants.flatMap((variant) => variant.points);
  const latency = section.querySelector(".latency"), load = section.querySelector(".load");
  const score = section.querySelector(".score");
  options(latency, data.latencies.filter((name) => points.some((point) => name in point.figures)), words);
  const loads = [...new Map(points.map((point) => [point.name, point])).values()]
    .sort((one, other) => one.mode.localeCompare(other.mode) || one.value - other.value);
  options(load, loads.map((point) => point.name), (name) => name.replaceAll("_", " "));
  if (loads.length) load.value = loads.filter((point) => point.mode === loads[0].mode).at(-1).name;
  const scored = data.scores.filter((name) => model.variants.some((variant) => name in variant.scores));
  options(score, scored, words);
  if (scored.includes("agreement")) score.value = "agreement";
  for (const select of [latency, load, score]) select.closest("label").hidden = select.options.length === 0;
  latency.addEventListener("change", () => draw(section, model, ["curves"]));
  load.addEventListener("change", () => draw(section, model, ["ttft", "itl"]));
  score.addEventListener("change", () => draw(section, model, ["accuracy"]));
  for (const [kind, make] of Object.entries(TABLES)) table(section.querySelector(`[data-table="${kind}"]`), make(model));
  draw(section, model, Object.keys(PLOTS));
}

// A column is {name, value(row), kind, short}: what it is called, what stands there, is sorted and copied, `number`, `key`
// or `prose`, whether only its beginning is shown, and, where it is a list, `folded(row)`.
const subjects = (row) => row.commits.map((commit) => `${commit[0]} ${commit[2]}`);
const TABLES = {
  points(model) {
    const { style } = model, rows = model.variants.flatMap((variant) => variant.points);
    const figures = ["output_tokens_per_s", "requests_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms",
      "latency_p99_ms", "goodput_per_s", "error_rate"].filter((name) => rows.some((row) => name in row.figures));
    return { rows, columns: [
      { name: "variant", value: (row) => row.variant, dot: (row) => style[row.variant].colour },
      { name: "load", value: (row) => row.name.replaceAll("_", " ") + (row.partial ? " (partial)" : ""),
        order: (row) => row.value },
      ...figures.map((name) => ({ name: words(name), kind: "number", value: (row) => row.figures[name] })),
      { name: "engine", kind: "key", value: (row) => row.engine, short: true },
      { name: "run", kind: "key", value: (row) => row.run },
    ] };
  },
  variants(model) {
    const { style } = model, rows = model.variants;
    const scores = data.scores.filter((name) => rows.some((row) => name in row.scores));
    const broken = (row) => row.gates.filter((gate) => !gate.holds && !gate.skipped);
    return { rows, columns: [
      { name: "variant", value: (row) => row.name, dot: (row) => style[row.name].colour },
      { name: "gates", kind: "prose", value: (row) => (row.gates.length ? broken(row).map((gate) => gate.text).join("; ") || "all hold" : "none"),
        mood: (row) => (row.gates.length ? (broken(row).length ? "bad" : "good") : "") },
      ...scores.map((name) => ({ name: words(name), kind: "number", value: (row) => row.scores[name] })),
      ...(scores.length ? [{ name: "questions", kind: "number", value: (row) => row.questions || undefined }] : []),
      { name: "peak GiB", kind: "number", value: (row) => (row.peak ? row.peak / 2 ** 30 : undefined) },
      { name: "machine", value: (row) => row.host },
      { name: "engine", kind: "key", value: (row) => row.engine },
    ] };
  },
  history(model) {
    const rows = model.variants.flatMap((variant) => variant.history.map((run) => ({ ...run, variant: variant.name })));
    return { rows, columns: [
      { name: "started", value: (row) => row.started.slice(0, 19).replace("T", " ") },
      { name: "variant", value: (row) => row.variant },
      { name: "tokens/s", kind: "number", value: (row) => row.figures.output_tokens_per_s },
      { name: "at", value: (row) => row.load.replaceAll("_", " ") + (row.finished ? "" : " (unfinished)") },
      { name: "commit", kind: "key", value: (row) => row.revision.slice(0, 12) + (row.revision.endsWith("+") ? "+" : "") },
      { name: "commits since the run before", kind: "prose", value: (row) => subjects(row).join("; "), folded: subjects },
      { name: "engine", kind: "key", value: (row) => row.engine, short: true },
    ] };
  },
};

function table(place, { rows, columns }) {
  const head = document.createElement("div"), wrap = document.createElement("div"), drawn = document.createElement("table");
  head.className = "head";
  wrap.className = "rows";
  const copy = Object.assign(document.createElement("button"), { type: "button", textContent: "copy" });
  head.append(place.querySelector("h3"), copy);
  const header = drawn.createTHead().insertRow(), body = drawn.createTBody();
  let shown = rows;
  const fill = () => body.replaceChildren(...shown.map((row) => line(row, columns)));
  for (const column of columns) header.append(heading(column, (ascending) => {
    shown = sorted(rows, column, ascending);
    fill();
  }, header));
  copy.addEventListener("click", async () => {
    await copyText([columns.map((column) => column.name), ...shown.map((row) => columns.map((column) => column.value(row) ?? ""))]
      .map((cells) => cells.join("\t")).join("\n"));
    copy.textContent = "copied";
    setTimeout(() => { copy.textContent = "copy"; }, 1500);
  });
  fill();
  wrap.append(drawn);
  place.replaceChildren(head, wrap);
}

function heading(column, sort, header) {
  const cell = document.createElement("th"), button = document.createElement("button");
  cell.scope = "col";
  if (column.kind === "number") cell.className = "number";
  button.type = "button";
  button.textContent = column.name;
  button.addEventListener("click", () => {
    const ascending = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of header.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    sort(ascending);
  });
  cell.append(button);
  return cell;
}

function line(row, columns) {
  const made = document.createElement("tr");
  for (const column of columns) {
    const cell = made.insertCell(), value = column.value(row);
    cell.className = [column.kind, column.mood && column.mood(row)].filter(Boolean).join(" ");
    if (column.dot) {
      const dot = cell.appendChild(document.createElement("span"));
      dot.className = "dot";
      dot.style.background = column.dot(row);
    }
    const text = column.kind === "number" ? number(value) : String(value ?? "");
    const listed = column.folded ? column.folded(row) : [];
    cell.append(listed.length > 2 ? fold(listed) : column.short && text.length > 12 ? `${text.slice(0, 12)}…` : text);
    if (column.short) cell.title = text;
  }
  return made;
}

// The newest of several, and the others when it is opened.
function fold([newest, ...others]) {
  const all = document.createElement("details"), first = document.createElement("summary");
  first.textContent = `${newest}, and ${others.length} before`;
  all.append(first, ...others.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
  return all;
}

function sorted(rows, column, ascending) {
  const by = column.order || column.value, sign = ascending ? 1 : -1;
  return [...rows].sort((one, other) => {
    const [a, b] = [by(one), by(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  });
}

async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try { return await navigator.clipboard.writeText(text); } catch { /* a page from a file may not: the old way */ }
  }
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

document.querySelectorAll(".model").forEach(setUp);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
