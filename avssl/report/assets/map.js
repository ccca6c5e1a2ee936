// The embedding on a plane: one map per run, side by side, with the clip under the pointer.
function map(mount) {
  const planes = DATA.runs.flatMap((r) => r.planes);
  const names = [...new Set(planes.map((p) => p.name))], methods = [...new Set(planes.map((p) => p.method))];
  const state = { name: names[0], method: methods[0], picked: null };
  const plots = el("div", { class: "plots" });
  const paints = [];
  const draw = () => {
    paints.length = 0;
    plots.replaceChildren(...DATA.runs.flatMap((run, number) => run.planes.filter((p) => p.name === state.name && p.method === state.method)
      .map((p) => mapPlot(p, number, state, paints))));
  };
  mount.append(el("div", { class: "controls" },
    chips("Vectors", names.map((n) => [n, n]), state.name, (n) => { state.name = n; draw(); }),
    methods.length > 1 ? chips("By", methods.map((m) => [m, m]), state.method, (m) => { state.method = m; draw(); }) : null));
  const key = el("div", { class: "key" });
  const paintKey = () => key.replaceChildren(...CLASSES.map((label) => {
    const button = el("button", { type: "button", "aria-pressed": String(state.picked === label), onclick: () => {
      state.picked = state.picked === label ? null : label;
      paintKey();
      paints.forEach((paint) => paint());
    } }, el("i", { style: `background:${classColour(label)}` }), label);
    return button;
  }));
  if (CLASSES.length && CLASSES.length <= 40) { paintKey(); onTheme(paintKey); }
  mount.append(el("div", { class: "keyed" }, plots, key));
  draw();
}

function mapPlot(plane, run, state, paints) {
  const margin = 18, reachX = Math.max(1e-6, ...plane.x.map(Math.abs)), reachY = Math.max(1e-6, ...plane.y.map(Math.abs));
  let at = null, size = [1, 1], zoom = 1;
  const place = (i) => [size[0] / 2 + plane.x[i] * zoom, size[1] / 2 - plane.y[i] * zoom];
  const several = plane.streams.length > 1;
  const [node, paint] = canvas(0.64, (context, width, height) => {
    size = [width, height];
    zoom = Math.min((width / 2 - margin) / reachX, (height / 2 - margin) / reachY); // one scale for both axes
    context.clearRect(0, 0, width, height);
    const radius = plane.x.length > 800 ? 2.6 : plane.x.length > 250 ? 3.4 : 4.4;
    plane.x.forEach((_, i) => {
      const label = DATA.clips[plane.clip[i]].labels[0], [x, y] = place(i);
      context.globalAlpha = state.picked === null ? 0.8 : state.picked === label ? 0.95 : 0.1;
      context.fillStyle = context.strokeStyle = label === undefined && several ? colour(`c${plane.stream[i]}`) : label === undefined ? colour("c0") : classColour(label);
      context.beginPath();
      if (plane.stream[i] === 0) { context.arc(x, y, radius, 0, 7); context.fill(); }
      else { context.lineWidth = 1.6; context.rect(x - radius * 0.85, y - radius * 0.85, radius * 1.7, radius * 1.7); context.stroke(); }
    });
    context.globalAlpha = 1;
    if (at === null) return;
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    plane.clip.forEach((clip, i) => {
      if (clip !== plane.clip[at]) return;
      const [x, y] = place(i);
      context.beginPath();
      context.arc(x, y, radius + 4, 0, 7);
      context.stroke();
    });
  });
  paints.push(paint);
  const nearest = (event) => {
    const box = node.getBoundingClientRect();
    let best = null, far = 400;
    plane.x.forEach((_, i) => {
      const [x, y] = place(i), d = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (d < far) { far = d; best = i; }
    });
    return best;
  };
  const move = (event) => {
    const found = nearest(event);
    if (found !== at) { at = found; paint(); }
    if (at === null) hidePreview();
    else showPreview(event.clientX, event.clientY, [[plane.clip[at], plane.streams[plane.stream[at]]]], several ? plane.streams[plane.stream[at]] : "");
  };
  node.addEventListener("pointermove", move);
  node.addEventListener("pointerdown", move);
  node.addEventListener("pointerleave", () => { at = null; paint(); hidePreview(); });
  node.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found !== null && gallery.ask && gallery.ask(plane.clip[found], plane.streams[plane.stream[found]])) {
      document.getElementById("retrieval").scrollIntoView();
      hidePreview();
    }
  });
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `${plane.method} of ${plane.name} vectors, ${plane.x.length} points`);
  const marks = several ? plane.streams.map((s, i) => `${i ? "□" : "●"} ${s}`).join("  ") : `${plane.x.length} clips`;
  return el("div", { class: "plot" }, DATA.runs.length > 1 ? el("h3", {}, el("span", { class: `dot run-${run}` }), DATA.runs[run].name) : null, node,
    el("div", { class: "under" }, el("span", {}, marks), el("span", {}, `${plane.method}: ${plane.note}`)));
}
