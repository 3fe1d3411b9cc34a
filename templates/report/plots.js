"use strict";
// What each plot shows: functions from one model's data to Plotly traces and axes. No state, no page.

const DARK = matchMedia("(prefers-color-scheme: dark)").matches;
const COLOURS = DARK
  ? ["#66a6e8", "#ee9d4d", "#4cc496", "#e0859a", "#a993ea", "#cdac4a", "#45bdd2", "#a3aebd"]
  : ["#2563a8", "#d97a1d", "#2a9d6f", "#b5485d", "#7a5cc7", "#8a6d1f", "#138a9e", "#5b6675"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
const WORDS = {
  ttft: "TTFT", itl: "ITL", latency: "latency", output_tokens_per_s: "tokens/s", requests_per_s: "requests/s",
  goodput_per_s: "goodput/s", error_rate: "errors", agreement_identical: "identical", agreement_prefix: "prefix",
  rouge_l: "ROUGE-L", chrf: "chrF", bleu: "BLEU", kl_bound: "KL bound",
};

// A colour of page.css, so that the plots and the page around them are of one theme.
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function words(figure) {
  const parts = figure.match(/^(ttft|itl|latency)_(p\d+)_ms$/);
  if (parts) return `${WORDS[parts[1]]} ${parts[2]}, ms`;
  return WORDS[figure] || figure.replaceAll("_", " ");
}

// Precisions have colours, shapes have dashes, parallelisms have symbols: the same everywhere on the page.
function styles(model) {
  const of = (key) => [...new Set(model.variants.map((variant) => variant[key]))];
  const [precisions, shapes, parallelisms] = [of("precision"), of("shape"), of("parallelism")];
  return Object.fromEntries(model.variants.map((variant) => [variant.name, {
    colour: COLOURS[precisions.indexOf(variant.precision) % COLOURS.length],
    dash: DASHES[shapes.indexOf(variant.shape) % DASHES.length],
    symbol: SYMBOLS[parallelisms.indexOf(variant.parallelism) % SYMBOLS.length],
    hollow: shapes.indexOf(variant.shape) > 0 ? "-open" : "",
    label: [variant.precision, parallelisms.length > 1 ? variant.parallelism : "", shapes.length > 1 ? variant.shape : ""]
      .filter(Boolean).join(" · "),
  }]));
}

function number(value, digits = 4) {
  if (value === undefined || value === null) return "";
  if (value && Math.abs(value) < 1e-4) return value.toExponential(1);
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

// Plotly takes some tags in a text for markup.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function hover(point) {
  const figures = ["output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "agreement"]
    .filter((name) => name in point.figures).map((name) => `${words(name)}: <b>${number(point.figures[name])}</b>`);
  const times = point.repeats > 1 ? `, ${point.repeats} repeats, spread ${(100 * point.spread).toFixed(0)} %` : "";
  return [`<b>${point.variant}</b>`, `${point.name}${times}${point.partial ? ", partial" : ""}`, ...figures,
    `engine ${point.engine.slice(0, 32)}`, point.engine.slice(32)].filter(Boolean).join("<br>");
}

function layout(x, y, more = {}) {
  const axis = { gridcolor: ink("grid"), linecolor: ink("edge"), zeroline: false, automargin: true, ticks: "outside",
    tickcolor: ink("edge") };
  return {
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif", size: 12, color: ink("ink") },
    margin: { l: 52, r: 14, t: 12, b: 44 }, showlegend: false, paper_bgcolor: ink("paper"), plot_bgcolor: ink("paper"), hovermode: "closest",
    hoverlabel: { bgcolor: ink("paper"), bordercolor: ink("edge"), align: "left", font: { size: 12, color: ink("ink") } },
    xaxis: { ...axis, title: { text: x, standoff: 8 } }, yaxis: { ...axis, title: { text: y, standoff: 8 } }, ...more,
  };
}

function curves(model, { latency }) {
  const { style } = model;
  const known = model.variants.flatMap((variant) => variant.points.filter((point) => latency in point.figures));
  const front = known.filter((point) => point.front.includes(latency))
    .sort((one, other) => one.figures.output_tokens_per_s - other.figures.output_tokens_per_s);
  const lines = model.variants.flatMap((variant) => [...new Set(variant.points.map((point) => point.mode))].map((mode) => {
    const points = variant.points.filter((point) => point.mode === mode && latency in point.figures);
    const { colour, dash, symbol, label } = style[variant.name];
    return {
      name: label + (mode === "concurrency" ? "" : `, ${mode}`), type: "scatter", mode: "lines+markers+text",
      x: points.map((point) => point.figures.output_tokens_per_s), y: points.map((point) => point.figures[latency]),
      text: points.map((point) => number(point.value)), textposition: "top center",
      textfont: { size: 10, color: ink("soft") }, hovertext: points.map(hover), hoverinfo: "text",
      line: { color: colour, dash, width: 2 },
      marker: { color: points.map((point) => (point.partial ? ink("paper") : colour)), size: 8, symbol,
        line: { color: colour, width: 1.5 } },
    };
  }));
  const best = { name: "Pareto front", type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: ink("front"), width: 9 },
    x: front.map((point) => point.figures.output_tokens_per_s), y: front.map((point) => point.figures[latency]) };
  return { traces: [best, ...lines], layout: layout("output tokens/s; the numbers are the load", words(latency),
    { yaxis: { ...layout("", "").yaxis, title: { text: words(latency), standoff: 8 }, rangemode: "tozero" } }) };
}

function distribution(model, { load }, which) {
  const { style } = model;
  const traces = model.variants.flatMap((variant) => variant.points
    .filter((point) => point.name === load && point.curves[which].length).map((point) => {
      const values = point.curves[which];
      return { name: style[variant.name].label, type: "scatter", mode: "lines", x: values,
        y: values.map((_, place) => (100 * place) / (values.length - 1)),
        line: { color: style[variant.name].colour, dash: style[variant.name].dash, width: 2 },
        hovertemplate: `<b>${variant.name}</b><br>%{y:.0f} % within %{x:.4g} ms<extra></extra>` };
    }));
  return { traces, layout: layout(`${WORDS[which]}, ms`, "% of requests") };
}

function accuracy(model, { score }) {
  const { style } = model;
  const traces = model.variants.filter((variant) => score in variant.scores && variant.points.length).map((variant) => {
    const best = [...variant.points].sort((one, other) =>
      other.figures.output_tokens_per_s - one.figures.output_tokens_per_s)[0];
    const { colour, symbol, hollow, label } = style[variant.name];
    return { name: label, type: "scatter", mode: "markers", x: [best.figures.output_tokens_per_s],
      y: [variant.scores[score]], hovertext: [`${hover(best)}<br>${words(score)}: <b>${number(variant.scores[score])}</b>`],
      hoverinfo: "text", marker: { color: colour, size: 13, symbol: symbol + hollow, line: { width: 2, color: colour } } };
  });
  // An axis is no finer than a fiftieth of what it shows: equal scores should look equal.
  const made = layout("output tokens/s", words(score)), values = traces.flatMap((trace) => trace.y);
  const [low, high] = [Math.min(...values), Math.max(...values)], room = Math.max((high - low) / 6, Math.abs(high) / 50) || 0.05;
  const rates = traces.flatMap((trace) => trace.x);
  return { traces, layout: { ...made, xaxis: { ...made.xaxis, range: [0, 1.15 * Math.max(...rates)] },
    yaxis: { ...made.yaxis, range: [low - room, high + room] } } };
}

function memory(model) {
  const gib = 1 / 2 ** 30;
  const variants = model.variants.filter((variant) => variant.peak || Object.keys(variant.budget).length);
  const labels = variants.map((variant) => model.style[variant.name].label);
  const parts = [...new Set(variants.flatMap((variant) => Object.keys(variant.budget)))];
  const shades = DARK ? ["#6f9ac6", "#4a6f97", "#33506f"] : ["#7fa8d1", "#a9c6e3", "#d0e0f0"];
  const expected = parts.map((part, place) => ({ name: part, type: "bar", orientation: "h", y: labels, offsetgroup: "budget",
    x: variants.map((variant) => (variant.budget[part] || 0) * gib), marker: { color: shades[place % shades.length] },
    hovertemplate: `${part}: %{x:.3g} GiB<extra></extra>` }));
  const measured = { name: "measured peak", type: "bar", orientation: "h", y: labels, offsetgroup: "peak",
    x: variants.map((variant) => variant.peak * gib), marker: { color: COLOURS[1] },
    hovertemplate: "measured peak: %{x:.3g} GiB<extra></extra>" };
  const made = layout("GiB", "");
  return { traces: variants.length ? [...expected, measured] : [],
    layout: { ...made, showlegend: true, legend: { orientation: "h", y: -0.24, yanchor: "top", x: 0 }, barmode: "relative", yaxis: { ...made.yaxis, autorange: "reversed", ticks: "" }, bargap: 0.35 } };
}

function history(model) {
  const { style } = model;
  const traces = model.variants.map((variant) => ({
    name: style[variant.name].label, type: "scatter", mode: "lines+markers",
    x: variant.history.map((run) => run.started), y: variant.history.map((run) => run.figures.output_tokens_per_s),
    hovertext: variant.history.map((run) => [`<b>${variant.name}</b>`, `${run.started}, ${run.load}`,
      `output tokens/s: <b>${number(run.figures.output_tokens_per_s)}</b>`, `commit ${run.revision.slice(0, 12) || "unknown"}`,
      ...run.commits.slice(0, 6).map((commit) => plain(`  ${commit[0]} ${commit[2].slice(0, 60)}`)),
      `engine ${run.engine.slice(0, 32)}`, run.engine.slice(32)].filter(Boolean).join("<br>")),
    hoverinfo: "text", line: { color: style[variant.name].colour, dash: style[variant.name].dash, width: 1.5 },
    marker: { color: style[variant.name].colour, size: 7, symbol: style[variant.name].symbol },
  }));
  const made = layout("", "output tokens/s");
  return { traces, layout: { ...made, yaxis: { ...made.yaxis, rangemode: "tozero" } } };
}

const PLOTS = {
  curves, accuracy, memory, history,
  ttft: (model, chosen) => distribution(model, chosen, "ttft"), itl: (model, chosen) => distribution(model, chosen, "itl"),
};
