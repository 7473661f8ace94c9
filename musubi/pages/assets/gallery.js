// Generated clips with what made them: searched, put side by side, made again.
VIEWS.gallery = (data) => {
  const grid = el("div", { class: "clips" }), count = el("span", { class: "soft small" });
  const chosen = new Set();
  const compare = el("button", { class: "btn", type: "button", disabled: true, onclick: () => beside([...chosen]) }, "Side by side");
  const card = (item) => {
    const pick = el("button", { class: "btn", type: "button", "aria-pressed": "false", onclick: () => {
      if (chosen.has(item)) chosen.delete(item); else chosen.add(item);
      pick.setAttribute("aria-pressed", String(chosen.has(item)));
      node.classList.toggle("on", chosen.has(item));
      compare.disabled = chosen.size < 2;
      compare.textContent = chosen.size > 1 ? `Side by side: ${chosen.size}` : "Side by side";
    } }, "Choose");
    const node = clip(item.media, item.prompt || item.name, facts(item), pick, item.command && el("button", { class: "btn", type: "button", onclick: () => copy(item.command) }, "Copy the command"), item.media && item.media.full && el("a", { class: "btn", href: item.media.full, target: "_blank", rel: "noopener" }, "Full size"));
    return node;
  };
  const facts = (item) => [...item.facts, item.name].join(" · ");
  const all = data.items.map((item) => ({ item, node: card(item), text: `${item.prompt} ${item.name} ${item.facts.join(" ")} ${item.command || ""}`.toLowerCase() }));
  const field = el("input", { type: "search", placeholder: "Search prompts, seeds, sizes, LoRAs", "aria-label": "Search" });
  const find = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const left = all.filter((a) => words.every((w) => a.text.includes(w)));
    grid.replaceChildren(...left.map((a) => a.node));
    count.textContent = left.length === all.length ? `${all.length} clips` : `${left.length} of ${all.length}`;
  };
  field.addEventListener("input", find);
  find();
  const beside = (items) => {
    const close = () => { box.remove(); document.removeEventListener("keydown", esc); compare.focus(); };
    const esc = (e) => { if (e.key === "Escape") close(); };
    const differ = (item) => facts({ ...item, facts: item.facts.filter((f) => !items.every((o) => o.facts.includes(f))) });
    const clips = el("div", { class: "clips" }, items.map((i) => clip(i.media, i.prompt || i.name, differ(i))));
    const end = el("button", { class: "btn", type: "button", onclick: close }, "Close");
    const box = el("div", { class: "beside", role: "dialog", "aria-modal": "true", "aria-label": "Side by side" }, el("div", { class: "search" }, el("h2", {}, "Side by side"), el("button", { class: "btn", type: "button", style: { "margin-left": "auto" }, onclick: () => together(clips) }, "Start together"), end), clips);
    document.body.append(box);
    document.addEventListener("keydown", esc);
    end.focus();
    together(clips);
  };
  return [top(`as of ${moment(data.made)}`), el("div", { class: "head" }, el("h1", {}, data.name), data.thinned && el("p", { class: "note" }, data.thinned)), el("div", { class: "search" }, field, compare, count), grid];
};
