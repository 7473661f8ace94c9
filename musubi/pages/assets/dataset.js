// A dataset as it will be trained: every clip, its caption, its bucket; and what is left out, and why.
VIEWS.dataset = (data) => {
  const parts = data.datasets.map((d, i) => {
    const id = `dataset-${i + 1}`, grid = el("div", { class: "clips" });
    const chips = el("div", { class: "chips" });
    const show = (bucket) => grid.replaceChildren(...d.clips.filter((c) => !bucket || c.bucket === bucket).map((c) => clip(c.media, c.caption, `${c.name} · ${c.meta}`)));
    const buttons = [["", `all ${d.clips.length}`], ...d.buckets.map((b) => [b.name, `${b.name} · ${b.clips} clip${b.clips > 1 ? "s" : ""}`])].map(([key, words]) => el("button", { class: "btn", type: "button", "aria-pressed": String(!key), onclick: (e) => {
      for (const b of chips.children) b.setAttribute("aria-pressed", String(b === e.currentTarget));
      show(key);
    } }, words));
    chips.append(...(d.buckets.length > 1 ? buttons : []));
    show("");
    return section(id, d.title, d.about, d.notes.map((n) => el("p", { class: "note", style: { "margin-bottom": ".8rem" } }, n)), chips, grid,
      d.skipped.length > 0 && el("div", { class: "card scroll", style: { "margin-top": "1.1rem" } }, el("h3", { style: { "margin-bottom": ".4rem" } }, `Left out: ${d.skipped.length}`), el("table", {}, el("tbody", {}, d.skipped.map((s) => el("tr", {}, el("td", { class: "v" }, s.name), el("td", {}, s.reason)))))));
  });
  return [top(`as of ${moment(data.made)}`), el("div", { class: "head" }, el("h1", {}, data.name), el("p", { class: "soft" }, data.about), data.thinned && el("p", { class: "note" }, data.thinned)), parts.length > 1 && jump(parts), ...parts];
};
