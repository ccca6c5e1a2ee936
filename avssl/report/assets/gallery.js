// Queries and what each model answers, best first; right and wrong are marked by word, sign and colour.
const VERDICTS = { pair: ["✓", "own clip"], kin: ["✓", "same class"], wrong: ["✗", "other class"], unknown: ["·", "other clip"] };
const PAGE = 8;

function gallery(mount) {
  const names = [...new Set(DATA.runs.flatMap((r) => r.directions.map((d) => `${d.from}->${d.to}`)))];
  const state = { direction: names[0], show: "mixed", count: PAGE, only: null };
  const list = el("div", { class: "queries" });
  const more = el("div", { class: "more" });
  const shows = [["mixed", "mixed"], ["right", "right at rank 1"], ["wrong", "wrong at rank 1"]];
  const again = () => { state.count = PAGE; draw(); };
  const directions = chips("Query → answers", names.map((n) => [n, n.replace("->", " → ")]), state.direction, (key) => { state.direction = key; again(); });
  mount.append(el("div", { class: "controls" }, directions, chips("Show", shows, "mixed", (key) => { state.show = key; state.only = null; again(); })), list, more);

  function found() {
    return DATA.runs.map((run) => run.directions.find((d) => `${d.from}->${d.to}` === state.direction));
  }

  function order(direction) {
    const all = direction.clips.map((_, i) => i);
    const right = (i) => ["pair", "kin"].includes(verdict(direction, i, 0));
    if (state.show !== "mixed") return spread(all.filter((i) => right(i) === (state.show === "right")));
    return spread(all.slice().sort((a, b) => (direction.place[a] || Infinity) - (direction.place[b] || Infinity) || a - b));
  }

  function draw() {
    stop();
    const each = found();
    const first = each.find(Boolean);
    let queries = state.only === null ? order(first) : [first.clips.indexOf(state.only)].filter((i) => i >= 0);
    const total = queries.length;
    queries = queries.slice(0, state.count);
    list.replaceChildren(...queries.map((i) => query(first.clips[i], each)));
    if (!queries.length) list.append(el("p", { class: "quiet" }, "No such query."));
    more.replaceChildren(...(state.only !== null
      ? [el("button", { class: "quiet-button", type: "button", onclick: () => { state.only = null; draw(); } }, "Back to all queries")]
      : total > state.count
        ? [el("button", { class: "quiet-button", type: "button", onclick: () => { state.count += PAGE; draw(); } }, "Show more"), el("small", {}, `${queries.length} of ${total} queries`)]
        : []));
  }

  function query(clip, each) {
    const direction = each.find(Boolean);
    const asked = el("div", { class: "asked" }, clipCard(clip, direction.from), el("div", { class: "place" }, placeText(each, clip)));
    const answers = el("div", { class: "answers" }, each.map((d, run) => {
      if (!d || d.clips.indexOf(clip) < 0) return null;
      const at = d.clips.indexOf(clip);
      const strip = el("div", { class: "hits", tabindex: "0", "aria-label": "Answers, best first" }, d.hits[at].map((hit, k) => {
        const kind = verdict(d, at, k), [sign, text] = VERDICTS[kind];
        return el("div", { class: `hit ${kind}` }, el("div", { class: "verdict" }, el("span", { "aria-hidden": "true" }, sign), text), clipCard(hit, d.to, d.scores[at][k]));
      }));
      return el("div", {}, DATA.runs.length > 1 ? el("div", { class: "of" }, el("span", { class: `dot run-${run}` }), DATA.runs[run].name) : null, strip);
    }));
    return el("article", { class: "query" }, asked, answers);
  }

  function placeText(each, clip) {
    const direction = each.find(Boolean);
    const place = direction.place[direction.clips.indexOf(clip)];
    if (!place || DATA.runs.length > 1) return `${direction.from} → ${direction.to}`;
    const what = direction.from === direction.to ? "Nearest of its class" : "Its own clip";
    return `${what} is at rank ${format(place)} of ${format(direction.among)}`;
  }

  gallery.ask = (clip, stream) => {
    const wanted = names.find((n) => n.startsWith(`${stream}->`)) || names[0];
    const run = DATA.runs.find((r) => r.directions.some((d) => `${d.from}->${d.to}` === wanted && d.clips.includes(clip)));
    if (!run) return false;
    state.direction = wanted;
    directions.querySelectorAll(".chip").forEach((c, i) => c.setAttribute("aria-pressed", String(names[i] === wanted)));
    state.only = clip;
    draw();
    return true;
  };
  draw();
}

function verdict(direction, query, k) {
  const hit = direction.hits[query][k], own = direction.clips[query];
  if (hit === own) return "pair";
  const a = DATA.clips[own].labels, b = DATA.clips[hit].labels;
  if (!a.length || !b.length) return "unknown";
  return a.some((label) => b.includes(label)) ? "kin" : "wrong";
}

// Every so many-th first: a page of easy and hard queries, not of the first ones.
function spread(items) {
  const step = Math.max(1, Math.floor(items.length / PAGE));
  const out = [];
  for (let s = 0; s < step; s += 1) for (let i = s; i < items.length; i += step) out.push(items[i]);
  return out;
}
