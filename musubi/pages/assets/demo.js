// The demo: the verdict, pairs before and after, one seed while it learns, and what was typed.
VIEWS.demo = (data) => {
  const pair = (p) => el("figure", { class: "clip" }, el("div", { class: "duo" }, screen({ ...p.before, tag: "before" }, `before: ${p.prompt}`), screen({ ...p.after, tag: "with the LoRA" }, `with the LoRA: ${p.prompt}`)), el("figcaption", {}, more(p.prompt)));
  const found = data.found;
  const parts = [
    section("pairs", "Before and after", "the same prompts, the same seeds", el("div", { class: "clips", style: { "grid-template-columns": "repeat(auto-fill, minmax(min(100%, 340px), 1fr))" } }, data.pairs.map(pair))),
    data.controls.length > 0 && section("controls", "Other words", "known things, drawn with the same LoRA", el("div", { class: "clips", style: { "grid-template-columns": "repeat(auto-fill, minmax(min(100%, 340px), 1fr))" } }, data.controls.map(pair))),
    data.by_step.length > 0 && section("steps", "One seed while it learns", null, el("div", { class: "strip", tabindex: 0, role: "region", "aria-label": "By step" }, data.by_step.map((s) => el("figure", { class: "clip" }, screen({ ...s.media, tag: s.step ? `step ${s.step}` : "before" }, `step ${s.step}`))))),
    data.loss && section("loss", "Loss", null, el("div", { class: "card" }, chart("Loss", data.loss.smooth ? [{ ...data.loss, faint: true, name: "each step" }, { x: data.loss.x, y: data.loss.smooth, name: "smoothed" }] : [data.loss], { wide: 1080, tall: 240 }))),
    section("typed", "The commands", "in order, as they were typed", el("div", { class: "card" }, data.commands.map((c) => command(c.title, c.text)))),
    section("yours", "Now with your own clips", null, el("div", { class: "card" }, el("p", { style: { "margin-bottom": ".8rem" } }, "This looks at a folder of clips, and writes the two files that training needs."), command(null, data.next))),
  ].filter(Boolean);
  return [top("demo"), el("div", { class: "head" }, el("h1", {}, `A tiny model learned ${data.title}`), el("p", { class: "soft" }, data.about)),
    el("div", { class: "verdict" },
      el("div", { class: "card" }, el("div", { class: "soft small" }, "Found before"), el("div", { class: "big" }, `${found[0]} of ${found[2]}`)),
      el("div", { class: "card" }, el("div", { class: "soft small" }, "Found with the LoRA"), el("div", { class: "big good" }, `${found[1]} of ${found[2]}`)),
      data.control && el("div", { class: "card" }, el("div", { class: "soft small" }, data.control.title), el("div", { class: "big" }, data.control.value), el("div", { class: "small soft" }, data.control.about))),
    jump(parts), ...parts];
};
