// Elements, numbers and words: what every view needs.
const NS = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(4)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}
// Text only ever enters as text nodes: nothing that is shown can become markup.
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(NS, tag), attributes, children);

function number(value, digits = 4) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}
const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US"));
function duration(seconds) {
  if (!isFinite(seconds) || seconds === null) return "–";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60);
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  if (h) return `${h} h ${String(m).padStart(2, "0")} min`;
  if (m) return `${m} min ${String(s % 60).padStart(2, "0")} s`;
  return seconds < 10 ? `${number(seconds, 2)} s` : `${s} s`;
}
function bytes(size) {
  for (const unit of ["bytes", "kB", "MB", "GB"]) {
    if (size < 1000 || unit === "GB") return `${unit === "bytes" ? size : size.toPrecision(3)} ${unit}`;
    size /= 1000;
  }
}
const moment = (at) => new Date(at * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

function logo() {
  return svg("svg", { viewBox: "0 0 32 32", "aria-hidden": "true", fill: "none", stroke: "currentColor", "stroke-width": 3, "stroke-linecap": "round" },
    svg("path", { d: "M4 22c5 0 6-12 12-12 4 0 6 3 6 6s-2 6-6 6-6-3-6-6" }),
    svg("path", { d: "M28 22c-4 0-5.500-5-7.500-8.500", opacity: .45 }));
}
function top(...end) {
  return el("div", { class: "top" }, logo(), el("b", {}, "musubi"), el("span", { class: "end" }, ...end));
}
function section(id, title, aside, ...body) {
  return el("section", { id, "aria-labelledby": `${id}-h` },
    el("header", {}, el("h2", { id: `${id}-h` }, title), aside && el("span", { class: "soft small" }, aside)), ...body);
}
function jump(sections) {
  const links = sections.filter(Boolean).map((s) => el("a", { href: `#${s.id}` }, s.querySelector("h2").textContent));
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const e of entries) if (e.isIntersecting)
        for (const a of links) a.classList.toggle("here", a.hash === `#${e.target.id}`);
    }, { rootMargin: "-20% 0px -70% 0px" });
    for (const s of sections.filter(Boolean)) seen.observe(s);
  }
  return el("nav", { class: "jump", "aria-label": "Sections" }, links);
}
function tile(title, value, unit, under) {
  return el("div", { class: "tile" }, el("dt", {}, title),
    el("dd", {}, value, unit && el("small", {}, ` ${unit}`)), under && el("div", { class: "under" }, under));
}
function toast(text) {
  const note = el("div", { class: "toast", role: "status" }, text);
  document.body.append(note);
  setTimeout(() => note.remove(), 1600);
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch (refused) { // a page from a file may not use the clipboard in some browsers
    const field = el("textarea", { style: { position: "fixed", opacity: 0 } });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast("Copied");
}
function command(title, text) {
  return el("div", { class: "cmd" }, title && el("h3", {}, title),
    el("div", { class: "code" }, el("code", {}, text),
      el("button", { class: "btn", type: "button", onclick: () => copy(text) }, "Copy")));
}
function more(words, lines = 150) {
  const text = el("div", { class: "words", lang: /[\u3040-\u30ff]/.test(words) ? "ja" : null }, words);
  if (words.length > lines) {
    text.tabIndex = 0;
    text.title = "Show all of it";
    text.style.cursor = "pointer";
    const turn = () => text.classList.toggle("all");
    text.addEventListener("click", turn);
    text.addEventListener("keydown", (e) => { if (e.key === "Enter") turn(); });
  }
  return text;
}
const VIEWS = {};
