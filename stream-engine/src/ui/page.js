// Fetches the page again and swaps its live part. Open details stay open; a hidden page rests.
"use strict";
(() => {
  const live = () => document.getElementById("live");
  const fresh = document.getElementById("fresh");
  const wait = () => Number(live()?.dataset.refresh || 0);
  const swap = async () => {
    const response = await fetch(location.href, { cache: "no-store" });
    const next = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("live");
    if (!next) return;
    const open = [...live().querySelectorAll("details")].map((d) => d.open);
    [...next.querySelectorAll("details")].forEach((d, n) => { if (n < open.length) d.open = open[n]; });
    live().replaceChildren(...next.childNodes);
    live().dataset.refresh = next.dataset.refresh;
  };
  const later = () => { if (wait() > 0) setTimeout(tick, wait()); };
  const tick = async () => {
    const busy = document.hidden || String(getSelection()) !== "";
    if (!busy) {
      try {
        await swap();
        fresh.textContent = `Updated ${new Date().toISOString().slice(11, 19)}`;
      } catch {
        fresh.textContent = "The engine does not answer; showing what was last known.";
      }
    }
    later();
  };
  later();
})();
