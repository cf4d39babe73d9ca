"use strict";
// The cards are in the page itself or, if it is served, come from the URL "rows", which filters the whole table.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEP = 24;
  const get = (id) => document.getElementById(id);
  const make = (tag, cls, text) => {
    const element = document.createElement(tag);
    if (cls) element.className = cls;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const wanted = () => ({ kind: get("kind").value, cls: get("class").value, name: get("name").value.trim() });

  function fromPage(filter) {
    const name = filter.name.toLowerCase();
    let matching = data.cards.filter((card) =>
      (filter.kind !== "errors" || card.error !== null) &&
      (filter.kind !== "low" || card.confidence !== null) &&
      (!filter.cls || card.classes.includes(Number(filter.cls))) &&
      (!name || card.name.toLowerCase().includes(name)));
    if (filter.kind === "low") matching = matching.slice().sort((a, b) => a.confidence - b.confidence);
    return matching;
  }

  async function fetched(filter, offset) {
    const query = new URLSearchParams({ kind: filter.kind, name: filter.name, offset, limit: STEP });
    if (filter.cls) query.set("class", filter.cls);
    const answer = await fetch(`${data.rows}?${query}`);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }

  const cards = get("cards"), count = get("count");
  let shown = [], total = 0, asking = 0, busy = false;

  async function more() {
    if (busy || (shown.length >= total && shown.length)) return;
    busy = true;
    const turn = asking, filter = wanted();
    try {
      let next;
      if (data.rows) {
        const answer = await fetched(filter, shown.length);
        if (turn !== asking) return;
        total = answer.total;
        next = answer.cards;
      } else {
        const matching = fromPage(filter);
        total = matching.length;
        next = matching.slice(shown.length, shown.length + STEP);
      }
      for (const card of next) {
        cards.append(drawn(card, shown.length));
        shown.push(card);
      }
      const of = data.rows ? "in the table" : `in this sample of the table's ${data.total.toLocaleString("en")}`;
      count.textContent = `${total.toLocaleString("en")} ${total === 1 ? "image" : "images"} ${of}, ${shown.length.toLocaleString("en")} shown`;
    } catch (error) {
      count.textContent = `The rows could not be read: ${error.message}`;
    } finally {
      if (turn === asking) busy = false;
    }
    if (turn === asking && get("end").getBoundingClientRect().top < innerHeight + 600 && shown.length < total) more();
  }

  function again() {
    asking += 1;
    busy = false;
    shown = [];
    total = 0;
    cards.replaceChildren();
    return more();
  }

  const labels = (card) => card.classes.map((index) => data.classes[index].name).join(", ") || "background only";
  const sure = (card) => (card.confidence === null ? "" : `confidence ${card.confidence.toFixed(3)}`);

  function picture(source, cls, alt) {
    const image = make("img", cls);
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = alt;
    image.src = source;
    return image;
  }

  function drawn(card, place) {
    const item = make("li"), button = make("button"), stack = make("span", "stack"), text = make("span", "text");
    button.type = "button";
    button.dataset.place = place;
    if (card.photo) stack.append(picture(card.photo, "", ""));
    if (card.mask) stack.append(picture(card.mask, "over", ""));
    if (card.error !== null || card.gone) stack.append(make("span", "why", card.error ?? card.gone));
    text.append(make("b", "", card.name.split("/").pop()), make("span", "", card.error !== null ? "error" : `${sure(card)}, ${labels(card)}`));
    button.append(stack, text);
    item.append(button);
    return item;
  }

  const large = get("large");
  let open = -1;

  function look(place) {
    const card = shown[place];
    if (!card) return;
    open = place;
    get("large-name").textContent = card.name;
    for (const [id, source] of [["large-photo", card.photo], ["large-mask", card.mask], ["large-under", card.photo], ["large-over", card.mask]]) {
      const image = get(id);
      image.hidden = !source;
      if (source) image.src = source; else image.removeAttribute("src");
    }
    get("large-photo").alt = card.photo ? `photo ${card.name}` : "";
    get("large-mask").alt = card.mask ? `mask of ${card.name}: ${labels(card)}` : "";
    const size = card.size ? `${card.size[1]} x ${card.size[0]} pixels` : "";
    get("large-text").textContent = card.error ?? [size, sure(card), labels(card), card.gone].filter(Boolean).join(", ");
    get("previous").disabled = place === 0;
    get("next").disabled = place >= total - 1;
    if (!large.open) large.showModal();
  }

  async function step(by) {
    const place = open + by;
    if (place >= shown.length) await more();
    if (place >= 0 && place < shown.length) look(place);
  }

  cards.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) look(Number(button.dataset.place));
  });
  get("close").addEventListener("click", () => large.close());
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  large.addEventListener("close", () => cards.querySelector(`[data-place="${open}"]`)?.focus());

  const opacity = get("opacity");
  const shine = () => {
    document.documentElement.style.setProperty("--opacity", opacity.value / 100);
    get("opacity-is").value = `${opacity.value} %`;
  };
  opacity.addEventListener("input", shine);
  let typing;
  get("name").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(again, 250); });
  get("kind").addEventListener("change", again);
  get("class").addEventListener("change", again);
  get("controls").addEventListener("submit", (event) => event.preventDefault());
  new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "600px" }).observe(get("end"));
  get("controls").reset();
  shine();
  again();
})();
