"use strict";
(() => {
  const tip = document.querySelector(".tip");
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = mark.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.top > tip.offsetHeight + 12 ? box.top - tip.offsetHeight - 8 : box.bottom + 8}px`;
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });

  const form = document.querySelector("form.filter");
  if (!form) return;
  const list = document.querySelector(".completions");
  const blank = document.querySelector("#row").content.firstElementChild;
  const told = form.querySelector("output");
  const more = document.querySelector(".more");
  const packed = document.querySelector("#rest");
  const STEP = list.children.length;
  const rows = [...list.children].map((element) => ({
    change: element.dataset.change,
    text: [...element.querySelectorAll("[data-part]")].map((part) => part.textContent).join("\n").toLowerCase(),
    element: () => element,
  }));
  let limit = STEP;
  let unpacking = null;

  function element([prompt, answer, before, after, was, is, change], number) {
    const made = blank.cloneNode(true);
    const texts = { prompt, answer, before, after, change };
    for (const part of made.querySelectorAll("[data-part]")) part.textContent = texts[part.dataset.part];
    made.querySelectorAll(".mark").forEach((mark, i) => {
      const right = [was, is][i];
      mark.textContent = right ? "right" : "wrong";
      mark.classList.add(right ? "yes" : "no");
    });
    made.querySelector(".change").classList.add(change);
    made.dataset.change = change;
    made.value = number;
    return made;
  }

  async function unpack() {
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    (await new Response(stream).json()).forEach((row, i) => rows.push({
      change: row[6],
      text: [row[0], row[1], row[6], row[2], row[3]].join("\n").toLowerCase(),
      element: () => element(row, STEP + i + 1),
    }));
  }

  async function filter() {
    try {
      if (packed) await (unpacking ??= unpack());
    } catch (error) {
      told.textContent = `This browser cannot unpack the other completions (${error.message}); use a newer one`;
      return;
    }
    const { change, text } = Object.fromEntries(new FormData(form));
    const wanted = text.trim().toLowerCase();
    const found = rows.filter((row) => (change === "all" || row.change === change) && row.text.includes(wanted));
    const shown = found.slice(0, limit);
    list.replaceChildren(...shown.map((row) => row.element()));
    const [n, of, all] = [shown.length, found.length, rows.length].map((count) => count.toLocaleString("en"));
    told.textContent = n === of ? `${n} of ${all} shown` : `${n} of ${of} found are shown; ${all} in all`;
    more.hidden = shown.length === found.length;
  }
  form.addEventListener("input", () => { limit = STEP; filter(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += STEP; filter(); });
})();
