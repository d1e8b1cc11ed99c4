"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });
  const percent = (share) => (100 * share).toFixed(2) + "%";
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const isKnown = (value) => value !== null && value !== undefined;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const layoutOf = (chart) => {
    const axis = (own) => ({ gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), ...own });
    const shown = structuredClone(chart.layout);
    // On a phone a long name would leave no room for the bars.
    const yaxis = axis(shown.yaxis);
    if (shown.yaxis2) shown.yaxis2 = axis(shown.yaxis2);
    if (chart.rows) yaxis.tickfont = { size: narrow.matches ? 9 : 11 };
    return {
      ...shown, xaxis: axis(shown.xaxis), yaxis, height: chart.rows ? Math.max(220, 130 + chart.rows * (chart.data[0].type === "heatmap" ? 20 : 15)) : narrow.matches ? 380 : 440,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("text"), family: "system-ui, sans-serif", size: 13 },
      dragmode: narrow.matches ? false : "zoom", // a finger scrolls
      margin: { l: 48, r: 12, t: 12, b: 48 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") } },
    };
  };
  const settings = { responsive: true, displaylogo: false, displayModeBar: false };

  const rows = (i) => {
    const s = data.students[i], found = [["state", s.s === "ok" ? "trained" : s.s === "stopped" ? "given up early" : "failed"]];
    if (s.s !== "failed") found.push(["validation " + data.metric, percent(s.a)]);
    data.figures.forEach(([, label, limit], f) => {
      if (!s.c || !isKnown(s.c[f])) return;
      const over = isKnown(limit) ? (s.c[f] <= limit ? " (keeps the budget)" : " (over the budget of " + number.format(limit) + ")") : "";
      found.push([label, number.format(s.c[f]) + over]);
    });
    if (isKnown(s.r)) found.push(["reward", s.r.toFixed(3)]);
    found.push(["removed", s.u.length ? s.u.map((u) => data.units[u]).join(", ") : "nothing"]);
    found.push(["narrower", s.w.length ? s.w.map(([g, w]) => data.groups[g][0] + " " + data.groups[g][1] + " → " + w).join(", ") : "nothing"]);
    if (s.k.length) found.push(["kernels", s.k.map(([name, k]) => name + " " + k + "×" + k).join(", ")]);
    found.push(["seconds of training", number.format(s.t)]);
    if (s.e) found.push(["reason", s.e]);
    return found;
  };
  const pointed = (i) => {
    const cut = (text) => (text.length > 60 ? text.slice(0, 57) + "…" : text);
    return "<b>student " + (i + 1) + "</b><br>" + rows(i).slice(1).map(([name, text]) => escaped(name + ": " + cut(text))).join("<br>") + "<extra></extra>";
  };
  const tell = (i) => {
    const list = document.createElement("dl");
    for (const [name, text] of rows(i)) {
      list.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: text }));
    }
    document.getElementById("details-title").textContent = "Student " + (i + 1) + ": " + data.students[i].d;
    document.getElementById("details-body").replaceChildren(list);
    const panel = document.getElementById("details");
    panel.focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
  };

  const costs = (f) => {
    const { students } = data, picked = data.charts.pareto.data, xs = picked[0].customdata.map((i) => students[i].c[f]);
    const right = picked[0].y, order = xs.map((_, n) => n).sort((a, b) => xs[a] - xs[b] || right[b] - right[a]), best = [];
    let most = -Infinity;
    for (const n of order) if (right[n] > most) { most = right[n]; best.push(n); }
    const changes = { x: [xs, best.map((n) => xs[n])], y: [right, best.map((n) => right[n])], customdata: [picked[0].customdata, best.map((n) => picked[0].customdata[n])] };
    picked.slice(2).forEach((trace) => {
      changes.x.push(trace.name === "teacher" ? [data.teacher[f]] : data.finals.map((each) => each[f]));
      changes.y.push(trace.y); changes.customdata.push(null);
    });
    picked.forEach((trace, n) => Object.assign(trace, { x: changes.x[n], y: changes.y[n], customdata: changes.customdata[n] }));
    const [, label, limit] = data.figures[f], layout = data.charts.pareto.layout;
    layout.xaxis.title.text = label;
    const line = { type: "line", yref: "paper", y0: 0, y1: 1, x0: limit, x1: limit, line: { color: "#e08a00", dash: "dash", width: 1.5 } };
    layout.shapes = isKnown(limit) ? [line] : [];
  };

  const draw = (name) => {
    const place = document.getElementById("chart-" + name), chart = data.charts[name];
    if (name === "pareto") chart.data.slice(0, 2).forEach((trace) => { trace.hovertemplate = trace.customdata.map(pointed); });
    const layout = layoutOf(chart);
    place.style.minHeight = layout.height + "px"; // what the style sheet holds free until then is too much for a few bars
    Plotly.react(place, chart.data, layout, settings);
    return place;
  };
  for (const name of Object.keys(data.charts)) {
    const place = draw(name);
    if (name !== "pareto" && name !== "rewards") continue;
    const first = name === "rewards" ? 1 : 0;
    place.on("plotly_click", (event) => {
      const point = event.points.find((each) => isKnown(each.customdata));
      if (point) tell(point.customdata - first);
    });
  }
  document.querySelectorAll("[data-student]").forEach((button) => button.addEventListener("click", () => tell(Number(button.dataset.student))));
  const figure = document.getElementById("figure");
  if (figure) figure.addEventListener("change", () => { costs(Number(figure.value)); draw("pareto"); });
  for (const media of [dark, narrow]) media.addEventListener("change", () => Object.keys(data.charts).forEach(draw));
})();
