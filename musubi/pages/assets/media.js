// Clips: they play while they are seen, and stand still for who asked for less motion.
const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
const playing = "IntersectionObserver" in window ? new IntersectionObserver((entries) => {
  for (const e of entries) {
    if (!e.isIntersecting) e.target.pause();
    else if (!calm && e.target.dataset.held !== "yes") e.target.play().catch(() => {});
  }
}, { threshold: .2 }) : null;

// media: {src, kind: "video" | "image", full?, pixel?, tag?}
function screen(media, words = "") {
  if (!media || !media.src) return el("div", { class: "screen" }, el("span", { class: "none" }, (media && media.why) || "not drawn"));
  const tag = media.tag && el("span", { class: "tag" }, media.tag);
  const box = el("div", { class: `screen${media.pixel ? " pixel" : ""}` });
  if (media.kind === "image") return fill(box, {}, [el("img", { src: media.src, alt: words, loading: "lazy" }), tag]);
  const video = el("video", { src: media.src, loop: true, playsinline: true, preload: "metadata", tabindex: 0, "aria-label": words || "clip" });
  video.muted = true;
  const turn = () => {
    if (video.paused) { video.dataset.held = "no"; video.play().catch(() => {}); } else { video.dataset.held = "yes"; video.pause(); }
  };
  video.title = "Click: pause or play";
  video.addEventListener("click", turn);
  video.addEventListener("keydown", (e) => { if (e.key === " " || e.key === "Enter") { e.preventDefault(); turn(); } });
  video.addEventListener("loadedmetadata", () => { if (video.videoWidth) box.style.setProperty("--ratio", `${video.videoWidth} / ${video.videoHeight}`); });
  if (playing) playing.observe(video); else video.controls = true;
  return fill(box, {}, [video, tag]);
}
function clip(media, words, meta, ...acts) {
  return el("figure", { class: "clip" }, screen(media, words), el("figcaption", {}, words && more(words), meta && el("div", { class: "meta" }, meta),
    acts.some(Boolean) && el("div", { class: "acts" }, acts)));
}
// All videos below an element begin again together.
function together(root) {
  for (const video of root.querySelectorAll("video")) { try { video.currentTime = 0; } catch (unready) { /* it starts at 0 */ } }
}
