// Why a photo was found: both photos, and the places that agree. It follows page.js, whose names it uses.
"use strict";

let reason = ""; // what is asked for

main.addEventListener("click", async (event) => {
  const button = event.target.closest(".ask-why");
  if (!button) return;
  const words = asked();
  words.set("with", button.dataset.photo);
  reason = String(words);
  const shown = $("why-shown");
  $("why-name").textContent = button.ariaLabel;
  shown.textContent = "One moment\u2026";
  $("why").showModal();
  try {
    const came = await ask(`/why?${words}`);
    if (reason !== String(words)) return; // it comes too late
    shown.innerHTML = came;
    // The photo that is searched for has no address; it is on the page.
    const picture = $("stage").querySelector("img")?.src;
    for (const image of shown.querySelectorAll("image.asked")) {
      if (picture) image.setAttribute("href", picture);
    }
  } catch (error) {
    shown.textContent = error.message;
  }
});

$("why-close").addEventListener("click", () => $("why").close());
$("why").addEventListener("close", () => {
  reason = "";
});
