// Draw what the page carries; a served page asks its server again whenever the files change.
const root = document.getElementById("page");
const first = JSON.parse(document.getElementById("data").textContent);
function busy() {
  // Nothing moves under the hand of who drags the slider, types, or has opened a box.
  const active = document.activeElement;
  return document.querySelector(".beside, details[open]") || (active && ["INPUT", "TEXTAREA"].includes(active.tagName));
}
let shown = first, wide = window.innerWidth >= 700;
function draw(data) {
  shown = data;
  const place = window.scrollY, back = data.home ? el("a", { href: data.home }, "all runs") : null;
  root.replaceChildren(...VIEWS[data.view](data, back).flat().filter(Boolean));
  window.scrollTo({ top: place, behavior: "instant" });
}
draw(first);
window.addEventListener("resize", () => { if ((window.innerWidth >= 700) !== wide) { wide = !wide; draw(shown); } });
if (first.live && "EventSource" in window) {
  let waiting = false, version = null;
  const renew = async () => {
    if (busy() || document.hidden) { waiting = true; return; }
    waiting = false;
    try {
      const answer = await fetch(first.live.data, { cache: "no-store" });
      if (answer.ok) draw(await answer.json());
    } catch (gone) { /* the server ended; what is drawn stays */ }
  };
  const events = new EventSource(first.live.events);
  events.addEventListener("change", (e) => { if (version !== null && version !== e.data) renew(); version = e.data; });
  setInterval(() => { if (waiting) renew(); }, 2000);
}
