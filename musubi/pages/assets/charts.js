// Curves with a reading under the pointer, the finger or the arrow keys.
function ticks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
  const size = [1, 2, 5, 10].map((f) => f * step).find((s) => (high - low) / s <= count) || step;
  const found = [];
  for (let t = Math.ceil(low / size) * size; t <= high + size * 1e-6; t += size) found.push(Number(t.toPrecision(12)));
  return found;
}
function bounds(curves) {
  const all = curves.flatMap((c) => c.bound || c.y).filter((v) => isFinite(v)).sort((a, b) => a - b);
  if (!all.length) return [0, 1];
  // One wild step may not flatten the rest: the outer hundredth of many points is cut.
  const cut = all.length > 60 ? Math.floor(all.length / 100) : 0;
  let low = all[cut], high = all[all.length - 1 - cut];
  if (low > 0 && low < high * .55) low = 0;
  if (high === low) { high += Math.abs(high) * .1 || 1; low -= low ? Math.abs(low) * .1 : 0; }
  const room = (high - low) * .06;
  return [low === 0 ? 0 : low - room, high + room];
}
// curves: [{x, y, color, name, faint}]
function chart(title, curves, { unit = "", tall = 210, wide = 620, aside = null, reading = null, zero = false } = {}) {
  if (window.innerWidth < 700) [wide, tall] = [400, 200]; // letters keep their size on a phone
  const left = 52, right = 12, topEdge = 10, bottom = 24, plotWidth = wide - left - right, plotHeight = tall - topEdge - bottom;
  const xs = curves.flatMap((c) => c.x);
  const x0 = Math.min(...xs.slice(0, 1), ...curves.map((c) => c.x[0])), x1 = Math.max(...curves.map((c) => c.x[c.x.length - 1]), x0 + 1);
  const [low, y1] = bounds(curves), y0 = zero ? Math.min(0, low) : low;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * plotWidth;
  const py = (y) => topEdge + (1 - (Math.min(Math.max(y, y0), y1) - y0) / (y1 - y0)) * plotHeight;
  const body = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", tabindex: 0, "aria-label": `${title} by step, from ${number(curves[0].y[0])} to ${number(curves[0].y[curves[0].y.length - 1])}` });
  for (const t of ticks(y0, y1, 4)) body.append(
    svg("line", { class: "grid", x1: left, x2: wide - right, y1: py(t), y2: py(t) }),
    svg("text", { x: left - 7, y: py(t) + 4, "text-anchor": "end" }, number(t, 3)));
  for (const t of ticks(x0, x1, wide > 700 ? 8 : 5)) if (Number.isInteger(t)) body.append(svg("text", { x: px(t), y: tall - 7, "text-anchor": "middle" }, whole(t)));
  for (const c of curves) {
    const path = c.x.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(c.y[i]).toFixed(1)}`).join("");
    body.append(svg("path", { class: `${c.faint ? "raw" : "line"} ${c.color || "c0"}`, d: path }));
    if (c.x.length === 1) body.append(svg("circle", { class: `dot ${c.color || "c0"}`, cx: px(c.x[0]), cy: py(c.y[0]), r: 4 }));
  }
  const cross = svg("line", { class: "cross", y1: topEdge, y2: tall - bottom, visibility: "hidden" });
  const dots = curves.map((c) => svg("circle", { class: `dot ${c.color || "c0"}`, r: 4, visibility: "hidden" }));
  body.append(cross, ...dots);
  const still = reading ?? (() => { const c = curves.find((k) => !k.faint) || curves[0]; return `now ${number(c.y[c.y.length - 1])}${unit && ` ${unit}`}`; })();
  const read = el("span", { class: "read" }, still);
  let at = null;
  const show = (x) => {
    at = Math.min(Math.max(x, x0), x1);
    const near = curves.map((c) => c.x.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(c.x[best] - at) ? i : best), 0));
    const main = Math.max(curves.findIndex((c) => !c.faint), 0);
    cross.setAttribute("x1", px(curves[main].x[near[main]]));
    cross.setAttribute("x2", px(curves[main].x[near[main]]));
    cross.setAttribute("visibility", "visible");
    curves.forEach((c, i) => {
      dots[i].setAttribute("cx", px(c.x[near[i]]));
      dots[i].setAttribute("cy", py(c.y[near[i]]));
      dots[i].setAttribute("visibility", c.faint ? "hidden" : "visible");
    });
    read.textContent = `step ${whole(curves[main].x[near[main]])} · ` + curves.map((c, i) => `${c.name && curves.length > 1 ? c.name + " " : ""}${number(c.y[near[i]])}`).join(" · ") + (unit && ` ${unit}`);
  };
  const hide = () => { for (const node of [cross, ...dots]) node.setAttribute("visibility", "hidden"); read.textContent = still; };
  const under = (e) => { const box = body.getBoundingClientRect(); show(x0 + (((e.clientX - box.left) / box.width) * wide - left) / plotWidth * (x1 - x0)); };
  body.addEventListener("pointermove", under);
  body.addEventListener("pointerdown", under);
  body.addEventListener("pointerleave", hide);
  body.addEventListener("blur", hide);
  body.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (by) { e.preventDefault(); show((at ?? x1) + by * Math.max((x1 - x0) / 60, 1)); }
  });
  const keys = curves.length > 1 && curves.filter((c) => c.name).map((c) => el("span", { class: `key small soft ${c.color || "c0"}` }, el("i", { style: { opacity: c.faint ? .4 : 1 } }), c.name));
  return el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, title), keys, aside && el("span", { class: "small soft" }, aside), read), body);
}
function spark(curve, color = "c0") {
  const [y0, y1] = bounds([curve]), x0 = curve.x[0], x1 = curve.x[curve.x.length - 1];
  const d = curve.x.map((x, i) => `${i ? "L" : "M"}${(((x - x0) / (x1 - x0 || 1)) * 300).toFixed(1)} ${(46 - ((Math.min(Math.max(curve.y[i], y0), y1) - y0) / (y1 - y0)) * 42).toFixed(1)}`).join("");
  return svg("svg", { viewBox: "0 0 300 48", preserveAspectRatio: "none", "aria-hidden": "true", style: { width: "100%", height: "48px" } }, svg("path", { class: `line ${color}`, d, "vector-effect": "non-scaling-stroke" }));
}
// rows x columns of numbers, the larger the redder
function heat(norms) {
  const most = Math.max(...norms.values.flat().filter((v) => v !== null && v >= 0), 1e-12);
  const say = el("p", { class: "small soft num", "aria-live": "polite" }, `Largest: ${number(most)}. Point at a cell to read it.`);
  const cell = (v, r, c) => {
    if (v === null) return el("td", { class: "off" });
    const words = `${norms.rows[r]}, ${norms.columns[c]}: ${v < 0 ? "not finite" : number(v)}`;
    return el("td", { style: { "--v": Math.max(v, 0) / most }, title: words, onpointerenter: () => { say.textContent = words; } });
  };
  const numbers = norms.columns.map((c) => (/ (\d+)$/.exec(c) || ["", "·"])[1]);
  const every = numbers.length > 24 ? 5 : numbers.length > 12 ? 2 : 1;
  return el("div", {}, el("div", { class: "heat", tabindex: 0, role: "region", "aria-label": "Norms by block" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}), numbers.map((n, i) => el("th", { title: norms.columns[i] }, i % every ? "" : n)))),
    el("tbody", {}, norms.rows.map((row, r) => el("tr", {}, el("th", { scope: "row", title: row }, row), norms.values[r].map((v, c) => cell(v, r, c))))))), say);
}
