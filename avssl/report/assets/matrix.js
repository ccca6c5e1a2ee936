// Similarity and confusion: grids of numbers as colours, with the number under the pointer.
function matrix(mount) {
  const names = [...new Set(DATA.runs.flatMap((r) => r.matrices.map((m) => `${m.from}->${m.to}`)))];
  const plots = el("div", { class: "plots" });
  const show = (wanted) => plots.replaceChildren(...DATA.runs.flatMap((run, number) =>
    run.matrices.filter((m) => wanted.includes(`${m.from}->${m.to}`)).map((m) => similarity(m, number))));
  // One run: all beside each other. Several: one pair of streams at a time, so that the runs stand side by side.
  if (DATA.runs.length > 1 && names.length > 1) {
    mount.append(el("div", { class: "controls" }, chips("Streams", names.map((n) => [n, n.replace("->", " × ")]), names[0], (n) => show([n]))));
  }
  mount.append(plots);
  show(DATA.runs.length > 1 ? names.slice(0, 1) : names);
}

function similarity(m, run) {
  const n = m.clips.length, bytes = Uint8Array.from(atob(m.values), (c) => c.charCodeAt(0));
  const edge = 14;
  const [node] = canvas(1, (context, width, height) => {
    const colours = ramp(), image = new ImageData(n, n);
    bytes.forEach((v, i) => image.data.set([...colours[v], 255], i * 4));
    const small = el("canvas", { width: n, height: n });
    small.getContext("2d").putImageData(image, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, edge, edge, width - edge, height - edge);
    const step = (width - edge) / n;
    m.groups.forEach(([start, end, label]) => {
      context.fillStyle = classColour(label);
      context.fillRect(edge + start * step, 3, (end - start) * step - 1, 7);
      context.fillRect(3, edge + start * step, 7, (end - start) * step - 1);
    });
  });
  const cell = (event) => {
    const box = node.getBoundingClientRect(), step = (box.width - edge) / n;
    const column = Math.floor((event.clientX - box.left - edge) / step), row = Math.floor((event.clientY - box.top - edge) / step);
    if (row < 0 || column < 0 || row >= n || column >= n) return hidePreview();
    const value = m.low + (bytes[row * n + column] / 255) * (m.high - m.low);
    showPreview(event.clientX, event.clientY, [[m.clips[row], m.from], [m.clips[column], m.to]], `cosine ${bytes[row * n + column] === 255 ? "at least " : bytes[row * n + column] === 0 ? "at most " : ""}${value.toFixed(3)}`);
  };
  node.addEventListener("pointermove", cell);
  node.addEventListener("pointerdown", cell);
  node.addEventListener("pointerleave", hidePreview);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `Cosines of ${m.from} (rows) with ${m.to} (columns)`);
  const bar = el("i", {});
  const paint = () => { bar.style.background = `linear-gradient(90deg, ${ramp().filter((_, i) => i % 32 === 0).map((c) => `rgb(${c})`)})`; };
  paint();
  onTheme(paint);
  return el("div", { class: "plot square" }, DATA.runs.length > 1 ? el("h3", {}, el("span", { class: `dot run-${run}` }), DATA.runs[run].name) : null, node,
    el("div", { class: "under" }, el("span", {}, `rows ${m.from}, columns ${m.to}`), el("span", { class: "scale" }, m.low.toFixed(2), bar, m.high.toFixed(2))));
}

function confusion(mount) {
  const run = DATA.runs.find((r) => r.name === mount.dataset.run), { names, counts } = run.confusion;
  const n = names.length, totals = counts.map((row) => row.reduce((a, b) => a + b, 0) || 1);
  const upright = Math.max(...names.map((s) => s.length)) <= 3; // short names need no turning
  const space = n <= 24 ? Math.min(96, 16 + Math.max(...names.map((s) => s.length)) * 6.2) : 8;
  const [node] = canvas(1, (context, width, height) => {
    const colours = ramp(), step = (width - space - 6) / n;
    context.clearRect(0, 0, width, height);
    context.font = `11.5px ${getComputedStyle(document.body).fontFamily}`;
    counts.forEach((row, i) => row.forEach((count, j) => {
      const share = count / totals[i];
      context.fillStyle = `rgb(${colours[Math.round(share * 255)]})`;
      context.fillRect(space + j * step + 0.5, space + i * step + 0.5, step - 1, step - 1);
      if (count && step > 21) {
        const [r, g, b] = colours[Math.round(share * 255)];
        context.fillStyle = 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#1d2126" : "#f4f4f0";
        context.textAlign = "center";
        context.fillText(String(count), space + (j + 0.5) * step, space + (i + 0.5) * step + 4);
      }
    }));
    if (n > 24) return;
    context.fillStyle = colour("soft");
    names.forEach((name, i) => {
      context.textAlign = "right";
      context.fillText(clipped(context, name, space - 10), space - 6, space + (i + 0.5) * step + 4);
      if (upright) {
        context.textAlign = "center";
        context.fillText(name, space + (i + 0.5) * step, space - 7);
        return;
      }
      context.save();
      context.translate(space + (i + 0.5) * step + 4, space - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(clipped(context, name, space - 10), 0, 0);
      context.restore();
    });
  });
  const under = el("div", { class: "under" }, "Rows: the true class; columns: the answer. Colour: share of the row.");
  const say = (event) => {
    const box = node.getBoundingClientRect(), step = (box.width - space - 6) / n;
    const j = Math.floor((event.clientX - box.left - space) / step), i = Math.floor((event.clientY - box.top - space) / step);
    if (i >= 0 && j >= 0 && i < n && j < n) under.textContent = `${names[i]} taken for ${names[j]}: ${counts[i][j]} of ${totals[i]}`;
  };
  node.addEventListener("pointermove", say);
  node.addEventListener("pointerdown", say);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", "Confusion of classes");
  mount.append(el("div", { class: "plot square" }, node, under));
}

function clipped(context, text, width) {
  let out = text;
  while (out.length > 1 && context.measureText(out).width > width) out = `${out.slice(0, -2)}…`;
  return out;
}
