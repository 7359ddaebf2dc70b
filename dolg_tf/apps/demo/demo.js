// The query box, drawn with mouse or finger over the photo. Gradio runs this once, with `element`
// (the block that holds the photo, whose content changes), `trigger` (events for Python) and `watch`
// (called when the content has changed).
const LEAST = 6; // pixels on the screen: anything smaller was a click, which removes the box
let start = null;
let before = null;
let box = null; // left, top, right, bottom as shares of the photo; null: the whole photo

const frame = () => element.querySelector(".frame");
const clamp = (x) => Math.min(Math.max(x, 0), 1);

function draw() {
  const shown = frame()?.querySelector(".box");
  if (!shown) return;
  shown.hidden = box === null;
  if (box === null) return;
  const [left, top, right, bottom] = box.map((x) => 100 * x);
  shown.style.left = `${left}%`;
  shown.style.top = `${top}%`;
  shown.style.width = `${right - left}%`;
  shown.style.height = `${bottom - top}%`;
}

function point(event) {
  const area = frame().getBoundingClientRect();
  return [
    clamp((event.clientX - area.left) / area.width),
    clamp((event.clientY - area.top) / area.height),
  ];
}

element.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0 || !event.target.closest(".frame")) return;
  event.preventDefault();
  frame().setPointerCapture(event.pointerId);
  start = point(event);
  before = box;
});

element.addEventListener("pointermove", (event) => {
  if (start === null) return;
  const [x, y] = point(event);
  box = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
  draw();
});

element.addEventListener("pointerup", () => {
  if (start === null) return;
  start = null;
  const area = frame().getBoundingClientRect();
  const drawn = box !== null && box !== before;
  if (!drawn || (box[2] - box[0]) * area.width < LEAST || (box[3] - box[1]) * area.height < LEAST) {
    box = null;
  }
  draw();
  trigger("box_drawn");
});

element.addEventListener("pointercancel", () => {
  if (start === null) return;
  start = null;
  box = before;
  draw();
});

watch("value", () => {
  box = start = null; // another photo
});

window.queryBox = {
  // The box in pixels of the photo, as the number fields show it.
  pixels() {
    const size = frame()?.dataset;
    if (!size) return [0, 0, 0, 0];
    const sides = [size.width, size.height, size.width, size.height].map(Number);
    return sides.map((side, i) => Math.round((box ?? [0, 0, 1, 1])[i] * side));
  },
  // The reverse; a box around all of the photo, or none of it, is removed.
  show(left, top, right, bottom) {
    const size = frame()?.dataset;
    if (!size) return;
    const shares = [left / size.width, top / size.height, right / size.width, bottom / size.height];
    const [l, t, r, b] = shares.map(clamp);
    box = (l <= 0 && t <= 0 && r >= 1 && b >= 1) || l >= r || t >= b ? null : [l, t, r, b];
    draw();
  },
};
