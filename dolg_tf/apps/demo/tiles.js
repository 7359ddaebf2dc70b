// Tiles of photos, and one of them enlarged. It follows page.js, whose names it uses.
"use strict";

let tiles = [];
let at = 0;

main.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".alike")) {
    const open = button.ariaExpanded !== "true";
    button.ariaExpanded = String(open);
    for (const tile of main.querySelectorAll(`[data-with="${CSS.escape(button.dataset.of)}"]`)) {
      tile.hidden = !open;
    }
  } else if (button?.id === "more-places") {
    const count = main.querySelectorAll(".place").length;
    most = Number(button.dataset.most);
    places().then(() => {
      main.querySelectorAll(".place")[count]?.focus();
      remember();
    });
  } else if (button?.matches(".enlarge")) {
    tiles = [...main.querySelectorAll(".photo:not([hidden]) .enlarge")];
    $("large").showModal();
    enlarge(tiles.indexOf(button));
  }
});

const picture = (tile, size) => `/${size}?photo=${encodeURIComponent(tile.dataset.photo)}`;

function enlarge(number) {
  at = (number + tiles.length) % tiles.length;
  const tile = tiles[at];
  const name = tile.querySelector("img").alt;
  const photo = $("large-photo");
  photo.src = picture(tile, "thumbnail");
  const large = new Image();
  large.onload = () => {
    if (tiles[at] === tile) photo.src = large.src;
  };
  large.src = picture(tile, "large");
  photo.alt = name;
  $("large-name").textContent = `${at + 1} of ${tiles.length}: ${name}`;
  $("large-score").textContent = tile.dataset.score ?? "";
  $("large-path").textContent = tile.dataset.path;
  $("large-again").href = `/?photo=${encodeURIComponent(tile.dataset.photo)}`;
  $("large-open").href = picture(tile, "file");
  $("large-copy").textContent = "Copy its path";
  $("previous").disabled = $("next").disabled = tiles.length < 2;
}

$("previous").addEventListener("click", () => enlarge(at - 1));
$("next").addEventListener("click", () => enlarge(at + 1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlarge(at - 1);
  if (event.key === "ArrowRight") enlarge(at + 1);
});
$("large").addEventListener("close", () => tiles[at]?.focus());
$("large-copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(tiles[at].dataset.path);
    $("large-copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("large-path"));
    $("large-copy").textContent = "Selected: copy it";
  }
});
