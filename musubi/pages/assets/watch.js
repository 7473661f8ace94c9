// Several runs: a card each, their losses in one picture, and where their settings differ.
function runCard(run, color) {
  const loss = byKey(run.series, "loss/current"), [kind, word] = standing(run.noted, run.now), left = remaining(run.noted, run.now);
  const part = run.noted.total ? Math.min(run.now.step / run.noted.total, 1) : 0;
  return el("a", { class: "card runcard", href: run.href },
    el("div", { class: "row", style: { display: "flex", gap: ".7rem", "align-items": "center" } }, el("h3", { style: { "overflow-wrap": "anywhere" } }, run.name), el("span", { class: `pill ${kind}`, style: { "margin-left": "auto" } }, word)),
    loss && spark({ x: loss.x, y: loss.smooth || loss.y }, color),
    el("div", { class: "track" }, el("i", { style: { width: `${part * 100}%` } })),
    el("div", { class: "small soft num" }, [`step ${whole(run.now.step)}${run.noted.total ? ` of ${whole(run.noted.total)}` : ""}`, run.now.loss !== null && `loss ${number(run.now.loss)}`, run.now.seconds && `${number(run.now.seconds, 3)} s a step`, kind === "running" && left && `${duration(left)} left`].filter(Boolean).join(" · ")));
}
VIEWS.runs = (data) => {
  const colors = ["c0", "c1", "c2", "c3", "c4", "c5"], color = (i) => colors[i % colors.length];
  const lost = data.runs.map((r, i) => ({ run: r, loss: byKey(r.series, "loss/current"), color: color(i) })).filter((r) => r.loss);
  const held = data.runs.map((r, i) => ({ run: r, loss: byKey(r.series, "loss/validation"), color: color(i) })).filter((r) => r.loss);
  const line = ({ run, loss, color: c }) => ({ x: loss.x, y: loss.smooth || loss.y, name: run.name, color: c });
  const names = [...new Set(data.runs.flatMap((r) => Object.keys(r.settings)))].filter((n) => new Set(data.runs.map((r) => r.settings[n])).size > 1);
  const parts = [
    section("runs", "Runs", `${data.runs.length} in ${data.places.join(", ")}`, data.runs.length ? el("div", { class: "cards" }, data.runs.map((r, i) => runCard(r, color(i)))) : el("p", { class: "card soft" }, "No run yet. Start `musubi train` with an --output_dir inside these folders; the page notices.")),
    lost.length > 1 && section("compare", "Side by side", "smoothed", el("div", { class: "pair" }, el("div", { class: "card wide" }, chart("Loss", lost.map(line), { wide: 1080, tall: 280, reading: "" })), held.length > 0 && el("div", { class: "card wide" }, chart("Validation loss", held.map(line), { wide: 1080, tall: 220, reading: "" })))),
    data.runs.length > 1 && names.length > 0 && section("differ", "Where the settings differ", null, el("div", { class: "card scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Option"), data.runs.map((r) => el("th", {}, r.name)))), el("tbody", {}, names.map((n) => el("tr", {}, el("td", { class: "k", style: { width: "auto" } }, n), data.runs.map((r) => el("td", { class: "v" }, r.settings[n] ?? "–")))))))),
  ].filter(Boolean);
  return [top("live"), el("div", { class: "head" }, el("h1", {}, "Runs")), ...parts];
};
