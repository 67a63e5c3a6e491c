"use strict";
// Names reach the page through textContent alone, so that a file name can never become markup.
const { labels, images } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
let place = 0, model = 0, timer = null;

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function img(source, alt) {
  const node = element("img");
  node.src = source;
  node.alt = alt;
  return node;
}

function card(number, page) {
  const shown = page.models[number];
  const error = element("div", "error", img(page.original, "original"), img(shown.image, "error"));
  const tokens = shown.tokens.map((source, group) => img(source, `tokens of group ${group + 1}`));
  const node = element("div", "card", element("h3", "", labels[number]), element("p", "", shown.metrics),
    img(shown.image, "reconstruction"), element("p", "", "error"), error);
  if (tokens.length) node.append(element("p", "", "tokens, by group"), element("div", "tokens", ...tokens));
  node.classList.toggle("chosen", number === model);
  node.addEventListener("click", () => show(place, number));
  return node;
}

function show(newPlace, newModel) {
  place = (newPlace + images.length) % images.length;
  const page = images[place];
  const present = Object.keys(page.models).map(Number);
  model = present.includes(newModel) ? newModel : present[0];
  $("place").textContent = `${place + 1} of ${images.length}`;
  $("key").textContent = page.key;
  $("ranks").textContent = Object.entries(page.ranks).map(([rank, of]) => `${rank} of ${of.join(", ")}`).join("; ");
  $("original").src = page.original;
  $("reconstruction").src = page.models[model].image;
  $("chosen").textContent = labels[model];
  const whole = page.width * Math.floor(384 / page.width);  // small images by a whole number
  $("stage").style.width = `${Math.max(page.width, Math.min(page.width * 2, 640), whole)}px`;
  $("viewer").classList.toggle("small", page.width < 128);  // pixels as squares
  $("cards").replaceChildren(...present.map((number) => card(number, page)));
}

function step(by) {  // through the models that this image has
  const present = Object.keys(images[place].models).map(Number);
  show(place, present[(present.indexOf(model) + by + present.length) % present.length]);
}

function blink() {
  const on = timer === null;
  if (on) timer = setInterval(() => $("stage").classList.toggle("other"), 600);
  else { clearInterval(timer); timer = null; }
  $("stage").classList.toggle("blinking", on);
  $("blink").setAttribute("aria-pressed", String(on));
}

const keys = {
  ArrowLeft: () => show(place - 1, model), ArrowRight: () => show(place + 1, model),
  ArrowUp: () => step(-1), ArrowDown: () => step(1), b: blink, B: blink,
};

if (images.length) {
  $("viewer").hidden = false;
  $("previous").addEventListener("click", keys.ArrowLeft);
  $("next").addEventListener("click", keys.ArrowRight);
  $("blink").addEventListener("click", blink);
  $("stage").addEventListener("pointermove", (event) => {
    const box = $("stage").getBoundingClientRect();
    $("stage").style.setProperty("--cut", `${100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))}%`);
  });
  $("gain").addEventListener("input", () => {
    document.documentElement.style.setProperty("--gain", $("gain").value);
    $("gain-shown").textContent = $("gain").value;
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (event.key.startsWith("Arrow")) event.preventDefault();
    keys[event.key]();
  });
  show(0, 0);
}
