"use strict";
// The page's data and the few tools that every part uses.
const DATA = JSON.parse(document.getElementById("page-data").textContent);
const PALETTE = 10;

function el(name, props, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Custom properties hold light-dark() pairs, which only a real property resolves: ask a probe for its computed colour.
const probe = el("span", { hidden: true });
document.body.append(probe);
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const redraws = [];
function onTheme(draw) { redraws.push(draw); }
function setTheme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  redraws.forEach((draw) => draw());
}
function isDark() {
  const forced = document.documentElement.style.colorScheme;
  return forced ? forced === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));

function onWidth(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    if (node.clientWidth && node.clientWidth !== last) { last = node.clientWidth; draw(); }
  }).observe(node);
}

function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function chips(label, options, chosen, choose) {
  const box = el("div", { class: "group", role: "group", "aria-label": label }, label ? el("span", {}, label) : null);
  options.forEach(([key, text]) => {
    const chip = el("button", { class: "chip", type: "button", "aria-pressed": String(key === chosen), onclick: () => {
      box.querySelectorAll(".chip").forEach((c) => c.setAttribute("aria-pressed", String(c === chip)));
      choose(key);
    } }, text);
    box.append(chip);
  });
  return box;
}

// -- clips ----------------------------------------------------------------------------------------------------------
const player = document.getElementById("player");
let sounding = null;
function stop() {
  player.pause();
  if (sounding) sounding.classList.remove("playing");
  sounding = null;
}
player.addEventListener("ended", stop);
function play(clip, face) {
  const again = sounding === face;
  stop();
  if (again) return;
  player.src = clip.sound;
  sounding = face;
  face.classList.add("playing");
  player.play().catch(stop);
}

function words(clip) { return clip.labels.length ? clip.labels.join(", ") : clip.id; }

// The face of a clip as one modality shows it; what sounds can be played.
function clipFace(clip, stream) {
  const shown = stream === "text" ? null : [stream, "vision", "audio"].find((m) => clip[m] && m !== "text");
  const plays = Boolean(clip.sound) && (stream === "audio" || !["vision", "text"].includes(stream));
  const inside = shown
    ? el("img", { class: shown, src: clip[shown], alt: `${stream} of ${clip.id}`, loading: "lazy", decoding: "async" })
    : el("span", { class: "words" }, clip.text || clip.id);
  const face = el(plays ? "button" : "div", { class: plays ? "face plays" : "face", type: plays ? "button" : null,
    "aria-label": plays ? `Play ${clip.id}` : null }, inside, plays ? el("span", { class: "play" }) : null);
  if (plays) face.addEventListener("click", () => play(clip, face));
  return face;
}

function clipCard(number, stream, score) {
  const clip = DATA.clips[number];
  return el("div", { class: "clip" }, clipFace(clip, stream),
    el("div", { class: "said" }, score === undefined ? null : el("span", { class: "score", title: "cosine" }, (score / 1000).toFixed(2)),
      clip.labels.length ? el("strong", {}, clip.labels.join(", ")) : null, el("span", { class: "id", title: clip.id }, clip.id)));
}

const preview = document.getElementById("preview");
function showPreview(x, y, numbers, note) {
  preview.replaceChildren(el("div", { class: numbers.length > 1 ? "two" : "" }, numbers.map(([number, stream]) => {
    const clip = DATA.clips[number];
    const picture = clip[stream] || clip.vision || clip.audio;
    return el("div", {}, picture && stream !== "text" ? el("img", { src: picture, alt: "" }) : el("p", {}, clip.text || ""),
      el("strong", {}, clip.labels.join(", ")), el("span", { class: "id" }, clip.id));
  })), note ? el("div", {}, note) : "");
  preview.classList.toggle("wide", numbers.length > 1);
  preview.hidden = false;
  const box = preview.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
  preview.style.left = `${Math.max(6, Math.min(left, innerWidth - box.width - 6))}px`;
  preview.style.top = `${Math.max(6, Math.min(y - box.height / 2, innerHeight - box.height - 6))}px`;
}
function hidePreview() { preview.hidden = true; }
addEventListener("scroll", hidePreview, { passive: true });

// Class names in natural order, each with a colour; more classes than colours share hues evenly.
const CLASSES = [...new Set(DATA.clips.map((c) => c.labels[0]).filter((l) => l !== undefined))]
  .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
function classColour(label) {
  const index = CLASSES.indexOf(label);
  if (index < 0) return colour("soft");
  if (CLASSES.length <= PALETTE) return colour(`c${index}`);
  return `hsl(${Math.round((360 * index) / CLASSES.length)} ${isDark() ? "55% 68%" : "55% 42%"})`;
}

// A canvas that is sharp on this screen; draw(context, width, height) in CSS pixels.
function canvas(ratio, draw) {
  const node = el("canvas", {});
  const paint = () => {
    const width = node.clientWidth || 300, height = Math.round(width * ratio), scale = devicePixelRatio || 1;
    node.style.height = `${height}px`;
    node.width = Math.round(width * scale);
    node.height = Math.round(height * scale);
    const context = node.getContext("2d");
    context.scale(scale, scale);
    draw(context, width, height);
  };
  onWidth(node, paint);
  onTheme(paint);
  return [node, paint];
}

// Sequential colours for matrices: from the card's own colour to the accent's far end.
function ramp() {
  const stops = isDark() ? ["#1a1d22", "#1d4047", "#2c7f86", "#7fd0cf", "#f3f6d8"] : ["#ffffff", "#d7e9e6", "#7dbcbd", "#1f6f78", "#0d2f3a"];
  const rgb = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (rgb.length - 1), low = Math.min(rgb.length - 2, Math.floor(at));
    return rgb[low].map((v, c) => Math.round(v + (rgb[low + 1][c] - v) * (at - low)));
  });
}
