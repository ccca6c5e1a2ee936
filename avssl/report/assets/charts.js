// Training curves: small, hoverable, drawn anew for every width.
function charts(mount) {
  const box = el("div", { class: "charts" });
  const state = { smooth: false };
  const drawers = DATA.panels.map((panel) => {
    const chart = new Chart(panel, state);
    box.append(chart.node);
    return chart;
  });
  const long = DATA.panels.some((p) => p.lines.some((l) => l.x.length > 40));
  if (long) {
    mount.append(el("div", { class: "controls" }, chips("Curves", [[false, "as logged"], [true, "smoothed"]], false, (value) => {
      state.smooth = value;
      drawers.forEach((c) => c.draw());
    })));
  }
  mount.append(box);
}

class Chart {
  constructor(panel, state) {
    this.panel = panel;
    this.state = state;
    this.svg = svg("svg", { role: "img", "aria-label": `${panel.title} over updates` });
    this.legend = el("div", { class: "legend" });
    this.node = el("div", { class: "chart", "data-panel": panel.key },
      el("h3", {}, panel.title, panel.unit ? el("small", {}, panel.unit) : null), this.legend, this.svg);
    const move = (event) => this.point(event.clientX - this.svg.getBoundingClientRect().left);
    this.svg.addEventListener("pointermove", move);
    this.svg.addEventListener("pointerdown", move);
    this.svg.addEventListener("pointerleave", () => this.point(null));
    onWidth(this.svg, () => this.draw());
    onTheme(() => this.draw());
  }

  lines() {
    return this.panel.lines.map((line, i) => ({
      ...line, y: this.state.smooth && line.kind === "train" ? smoothed(line.y) : line.y,
      tone: `var(--c${DATA.runs.length > 1 ? line.run % PALETTE : line.kind === "validation" ? 1 : this.panel.key.startsWith("spread") ? i % PALETTE : 0})`,
      label: (DATA.runs.length > 1 ? `${DATA.runs[line.run].name} ` : "") + (this.panel.lines.length > DATA.runs.length || DATA.runs.length === 1 ? line.name : ""),
    }));
  }

  draw() {
    const width = this.svg.clientWidth || 300, height = 168;
    const lines = this.lines();
    const xs = lines.flatMap((l) => [l.x[0], l.x[l.x.length - 1]]);
    const [low, high] = extent(lines, this.panel.key);
    const ticks = niceTicks(low, high, 4);
    const bottom = Math.min(low, ticks[0]), top = Math.max(high, ticks[ticks.length - 1]);
    const left = 8 + Math.max(...ticks.map((t) => format(t).length)) * 6.4;
    const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
    this.x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - 10);
    this.y = (v) => height - 22 - ((v - bottom) / (top - bottom || 1)) * (height - 32);
    const marks = ticks.flatMap((t) => [
      svg("line", { x1: left, x2: width - 10, y1: this.y(t), y2: this.y(t), class: "grid-line" }),
      svg("text", { x: left - 6, y: this.y(t) + 4, "text-anchor": "end" }, format(t)),
    ]);
    const across = niceTicks(x0, x1, Math.max(2, Math.floor(width / 60))).filter((t) => t >= x0 && t <= x1);
    across.forEach((t) => marks.push(svg("text", { x: Math.min(this.x(t), width - 14), y: height - 5, "text-anchor": "middle" }, format(t))));
    const paths = lines.map((line) => this.curve(line));
    this.cursor = svg("g", {});
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...marks, ...paths.flat(), this.cursor);
    this.drawn = lines;
    this.point(null);
  }

  curve(line) {
    const points = line.x.map((x, i) => `${this.x(x).toFixed(1)},${this.y(line.y[i]).toFixed(1)}`);
    const held = line.kind === "validation";
    const out = [svg("polyline", { points: points.join(" "), fill: "none", style: `stroke:${line.tone}`, "stroke-width": held ? 1.4 : 1.8,
      "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": held ? "1 4" : "none" })];
    if (held || line.x.length === 1) {
      line.x.forEach((x, i) => out.push(svg("circle", { cx: this.x(x), cy: this.y(line.y[i]), r: 3, style: `fill:var(--card);stroke:${line.tone}`, "stroke-width": 1.8 })));
    }
    return out;
  }

  // The legend shows the last values, or those under the pointer.
  point(px) {
    const entries = this.drawn.map((line) => {
      let index = line.x.length - 1;
      if (px !== null) line.x.forEach((x, i) => { if (Math.abs(this.x(x) - px) < Math.abs(this.x(line.x[index]) - px)) index = i; });
      return [line, index];
    });
    const at = px === null ? null : entries[0][0].x[entries[0][1]];
    this.legend.replaceChildren(...(at === null ? [] : [el("span", {}, `update ${format(at)}`)]), ...entries.map(([line, i]) =>
      el("span", {}, el("i", { class: line.kind === "validation" ? "swatch held" : "swatch", style: `color:${line.tone}` }), `${line.label} `, el("b", {}, format(line.y[i])))));
    this.cursor.replaceChildren(...(at === null ? [] : [
      svg("line", { x1: this.x(at), x2: this.x(at), y1: 8, y2: 146, class: "cursor" }),
      ...entries.map(([line, i]) => svg("circle", { cx: this.x(line.x[i]), cy: this.y(line.y[i]), r: 3.5, style: `fill:${line.tone}` })),
    ]));
  }
}

function extent(lines, key) {
  const values = lines.flatMap((l) => l.y).filter(Number.isFinite).sort((a, b) => a - b);
  if (!values.length) return [0, 1];
  const last = values.length - 1;
  // One wild first step must not flatten the rest: the axis follows all but the highest half percent of long curves.
  let low = values[0], high = values.length > 200 ? Math.max(values[Math.floor(last * 0.995)], ...lines.map((l) => l.y[l.y.length - 1])) : values[last];
  if (["clips_per_s", "data_wait", "lr", "grad_norm", "memory", "spread.std", "spread.rank"].includes(key)) low = Math.min(0, low);
  if (low === high) { low -= Math.abs(low) * 0.1 || 0.5; high += Math.abs(high) * 0.1 || 0.5; }
  return [low, high];
}

function niceTicks(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
  const out = [];
  for (let t = Math.floor(low / step) * step; t <= high + step * 0.001; t += step) out.push(Number(t.toPrecision(12)));
  if (out[out.length - 1] < high) out.push(Number((out[out.length - 1] + step).toPrecision(12)));
  return out;
}

function smoothed(values) {
  const reach = Math.max(2, Math.round(values.length / 40));
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - reach), i + reach + 1);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
}
