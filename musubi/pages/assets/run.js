// One run: how it stands, what it draws, its curves, its data, its LoRA, its settings.
const byKey = (series, key) => series.find((s) => s.key === key);
const SILENT = 900; // seconds without a sign of life after which a run is thought to be dead

function standing(noted, now) {
  if (!noted.state) return ["finished", "no notes", "This run wrote no notes: an older version made it."];
  const quiet = Date.now() / 1000 - noted.updated;
  if (noted.state === "running" && quiet > Math.max(SILENT, 20 * (now.seconds || 0)))
    return ["silent", "no sign of life", `The last sign of life was ${duration(quiet)} ago, after step ${whole(now.step)}: the run was killed, or its computer sleeps. Go on with the command at the end.`];
  return [noted.state, noted.state, noted.message];
}
function remaining(noted, now) {
  return noted.total && now.seconds ? (noted.total - now.step) * now.seconds : null;
}
function heading(data) {
  const { noted, now } = data, [kind, word, why] = standing(noted, now), left = remaining(noted, now);
  const part = noted.total ? Math.min(now.step / noted.total, 1) : null;
  return el("div", { class: "head" },
    el("div", { class: "row" }, el("h1", {}, data.name), el("span", { class: `pill ${kind}` }, word)),
    el("p", { class: "soft" }, [noted.trained, noted.architecture && `${noted.architecture} ${noted.task || ""}`.trim(), noted.device].filter(Boolean).join(" · ")),
    part !== null && el("div", {},
      el("div", { class: "row small soft num" }, el("span", {}, `step ${whole(now.step)} of ${whole(noted.total)} · epoch ${whole(now.epoch)}`),
        el("span", { style: { "margin-left": "auto" } }, kind === "running" && left ? `${duration(left)} left, until ${moment(Date.now() / 1000 + left)}` : `${(part * 100).toFixed(part < 1 ? 1 : 0)} %`)),
      el("div", { class: "track", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(part * 100), "aria-label": "Progress" }, el("i", { style: { width: `${part * 100}%` } }))),
    why && el("p", { class: `note ${kind}` }, why));
}
function tiles(data) {
  const { noted, now, series } = data, loss = byKey(series, "loss/current"), held = byKey(series, "loss/validation");
  const smooth = loss && (loss.smooth || loss.y), best = held && held.y.indexOf(Math.min(...held.y));
  return el("dl", { class: "tiles" },
    smooth && tile("Loss, smoothed", number(smooth[smooth.length - 1]), "", `${number(smooth[0])} at the start`),
    held && tile("Validation", number(held.y[held.y.length - 1]), "", `best ${number(held.y[best])} at step ${whole(held.x[best])}`),
    now.seconds && tile("A step takes", now.seconds < 1 ? number(now.seconds * 1000, 3) : number(now.seconds, 3), now.seconds < 1 ? "ms" : "s", now.tokens ? `${whole(now.tokens / now.seconds)} tokens a second` : null),
    noted.started && tile("Running for", duration(Math.max(noted.updated - noted.started, 0)), "", `since ${moment(noted.started)}`),
    now.device && tile("Device memory", number(now.device, 3), "GiB", "the highest peak"),
    now.host && tile("Host memory", number(now.host, 3), "GiB", "the most so far"));
}
function samplesOf(data) {
  const table = data.samples;
  if (!table) return null;
  const last = table.moments.length - 1;
  let at = last;
  const grid = el("div", { class: "clips" });
  const out = el("output", { for: "moment" });
  const strip = el("div", { class: "strip", tabindex: 0, role: "region", "aria-label": "One prompt by step" });
  let chosen = 0;
  const range = el("input", { id: "moment", type: "range", min: 0, max: last, value: last, step: 1, "aria-label": "Step of the samples" });
  const meta = (p) => [p.seed !== undefined && `seed ${p.seed}`, p.width && `${p.width}×${p.height}`, p.frames > 1 && `${p.frames} frames`].filter(Boolean).join(" · ");
  const draw = () => {
    out.textContent = table.moments[at] ? `step ${whole(table.moments[at])}` : "before training";
    grid.replaceChildren(...table.prompts.map((p, i) => {
      const card = clip(table.cells[i][at], p.prompt || `prompt ${p.number}`, meta(p),
        table.moments.length > 1 && el("button", { class: "btn", type: "button", "aria-pressed": String(i === chosen), onclick: () => { chosen = i; draw(); along(); } }, "By step"),
        table.cells[i][at] && table.cells[i][at].full && el("a", { class: "btn", href: table.cells[i][at].full, target: "_blank", rel: "noopener" }, "Full size"));
      card.classList.toggle("on", table.prompts.length > 1 && i === chosen);
      return card;
    }));
    together(grid);
  };
  const along = () => {
    strip.replaceChildren(...table.moments.map((m, i) => {
      const media = table.cells[chosen][i];
      const card = el("figure", { class: `clip${i === at ? " on" : ""}` }, screen(media && { ...media, tag: m ? `step ${whole(m)}` : "before" }, ""));
      return card;
    }));
    together(strip);
  };
  range.addEventListener("input", () => {
    at = Number(range.value);
    draw();
    [...strip.children].forEach((c, i) => c.classList.toggle("on", i === at));
  });
  draw();
  along();
  return section("samples", "Samples", `${table.prompts.length} prompt${table.prompts.length > 1 ? "s" : ""}, drawn ${table.moments.length} time${table.moments.length > 1 ? "s" : ""}`,
    table.moments.length > 1 && el("div", { class: "scrub" }, out, range, el("button", { class: "btn", type: "button", onclick: () => { together(grid); together(strip); } }, "Start together")),
    grid, table.moments.length > 1 && el("h3", { style: { margin: "1.4rem 0 .5rem" } }, "One prompt as it learned"), table.moments.length > 1 && strip);
}
function curvesOf(data) {
  const { series } = data, cards = [], loss = byKey(series, "loss/current"), held = byKey(series, "loss/validation");
  if (loss) {
    const lines = loss.smooth ? [{ ...loss, faint: true, name: "each step" }, { x: loss.x, y: loss.smooth, name: "smoothed" }] : [{ ...loss, name: "loss" }];
    cards.push(el("div", { class: "card wide" }, chart("Loss", lines, { wide: 1080, tall: 260 })));
  }
  if (held) cards.push(el("div", { class: "card" }, chart("Validation loss", [{ ...held, color: "c1" }], { reading: `best ${number(Math.min(...held.y))}` })));
  for (const one of series) {
    if (["loss/current", "loss/validation"].includes(one.key)) continue;
    const color = { "lr/unet": "c1", grad_norm: "c3", seconds: "c2", "memory/device": "c4", "memory/host": "c5" }[one.key] || "c1";
    const lines = one.smooth ? [{ ...one, color, faint: true, name: "each step" }, { x: one.x, y: one.smooth, color, name: "smoothed" }] : [{ ...one, color }];
    cards.push(el("div", { class: "card" }, chart(one.title, lines, { unit: one.unit, zero: one.unit !== "" })));
  }
  return cards.length ? section("curves", "Curves", "point at a curve, or press ← and → on it", el("div", { class: "pair" }, cards)) : null;
}
function dataOf(data) {
  const { noted } = data;
  if (!noted.datasets || !noted.datasets.length) return null;
  const total = noted.datasets.reduce((n, d) => n + d.items, 0);
  const chips = (noted.buckets || []).map((b) => el("span", { class: "chip" }, el("b", {}, `${b.width}×${b.height}`), b.frames > 1 ? ` · ${b.frames} frames` : "", ` · ${b.items} item${b.items > 1 ? "s" : ""}`));
  const aside = [`${total} item${total > 1 ? "s" : ""}`, noted.held && `${noted.held} held back for validation`, noted.per_epoch && `${noted.per_epoch} steps an epoch`].filter(Boolean).join(", ");
  return section("data", "What it is trained on", aside,
    el("div", { class: "chips", "aria-label": "Buckets" }, chips),
    el("div", { class: "thumbs" }, (noted.items || []).map((i) => clip(i.thumb ? { src: i.thumb, kind: "image" } : { why: i.kind === "video" ? "the video is not here" : "the picture is not here" }, i.caption, i.name))),
    noted.more > 0 && el("p", { class: "soft small", style: { "margin-top": ".8rem" } }, `and ${noted.more} more files`));
}
function loraOf(data) {
  const { norms, checkpoints } = data;
  if (!norms && !checkpoints.length) return null;
  const rows = [...checkpoints].reverse().map((c) => el("tr", {}, el("td", { class: "v" }, c.name), el("td", {}, c.what), el("td", { class: "num" }, bytes(c.bytes)), el("td", { class: "soft" }, moment(c.at))));
  const most = norms && Math.max(...norms.total.map(([, n]) => n), 1e-12);
  return section("lora", norms ? "What the LoRA changes" : "Checkpoints", norms && `norm of the change of each layer, at ${norms.of}`,
    norms && el("div", { class: "card" }, heat(norms)),
    norms && norms.total.length > 1 && el("div", { class: "card", style: { "margin-top": ".9rem" } }, el("h3", { style: { "margin-bottom": ".5rem" } }, "The whole change, by checkpoint"),
      norms.total.map(([what, n]) => el("div", { class: "row small num", style: { display: "grid", "grid-template-columns": "7rem 1fr 4.5rem", gap: ".7rem", "align-items": "center" } }, el("span", { class: "soft" }, what), el("div", { class: "track", style: { margin: 0 } }, el("i", { style: { width: `${(n / most) * 100}%` } })), el("span", {}, number(n))))),
    rows.length && el("div", { class: "card scroll", style: { "margin-top": ".9rem" } }, el("table", {}, el("thead", {}, el("tr", {}, ["Checkpoint", "After", "Size", "Written"].map((t) => el("th", {}, t)))), el("tbody", {}, rows))));
}
function settingsOf(data) {
  if (!data.settings.length) return null;
  const line = (r) => el("tr", {}, el("td", { class: "k" }, r.name), el("td", { class: "v" }, r.value));
  const chosen = data.settings.flatMap((g) => g.rows.filter((r) => r.chosen));
  return section("settings", "Settings", "those that differ from the defaults first",
    el("div", { class: "card" }, el("table", {}, el("tbody", {}, chosen.map(line))),
      el("details", { style: { "margin-top": ".6rem", "border-top": "1px solid var(--line)" } }, el("summary", {}, "All settings"),
        data.settings.map((g) => el("details", {}, el("summary", {}, g.title, " ", el("small", {}, g.rows.length)), el("table", {}, el("tbody", {}, g.rows.map(line))))))));
}
function commandsOf(data) {
  return section("next", "What to type next", null, el("div", { class: "card" }, data.commands.map((c) => command(c.title, c.text))));
}
VIEWS.run = (data, back) => {
  const parts = [samplesOf(data), curvesOf(data), dataOf(data), loraOf(data), settingsOf(data), commandsOf(data)].filter(Boolean);
  const said = data.live ? "live" : `as of ${moment(data.made)}`;
  return [top(back, back && " · ", said), heading(data), jump(parts), tiles(data), ...parts,
    el("footer", {}, `Drawn from the files of the run ${data.name}. ${data.thinned ? data.thinned : ""}`)];
};
