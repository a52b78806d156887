// The page of `mar serve`: settings, requests, and their images.

import { ImageGroup, element } from "./gallery.js";
import { access, describeModel, edit, generate, listModels } from "./service.js";
import { Viewer } from "./viewer.js";

const PARTIAL_IMAGES = 6; // how often an image is shown before it is finished, if the service allows it
const REMEMBERED = ["model", "prompt", "count", "preset", "other", "guidance", "seed"];

const byId = (id) => document.getElementById(id);
const form = byId("settings");
let model = null; // the description of the chosen model
let running = null; // the AbortController of the request that runs

const viewer = new Viewer({
  repeat: (image) => draw([{ ...image.settings, seed: image.seed, index: image.index, n: 1 }]),
  vary: (image) => draw([{ ...image.settings, seed: randomSeed(), index: 0, n: Number(form.count.value) }]),
  edit: (image, prompt, mask) => {
    const content = Uint8Array.from(atob(image.content), (character) => character.charCodeAt(0));
    const fields = { ...image.settings, prompt, seed: randomSeed(), index: 0, n: 1 };
    draw([fields], (settings, signal) => edit(settings, new Blob([content]), mask, signal));
  },
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  remember();
  const presets = form.other.value ? [form.preset.value, form.other.value] : [form.preset.value];
  const seed = form.seed.value ? Number(form.seed.value) : randomSeed();
  draw(presets.map((preset) => settingsOf(preset, seed)));
});
form.model.addEventListener("change", () => attempt(() => chooseModel(form.model.value)));
form.key.addEventListener("change", () => {
  access.key = form.key.value;
  attempt(start);
});
byId("cancel").addEventListener("click", () => running?.abort());
attempt(start);

/** Fill the form with what the service offers, and with the settings of the address. */
async function start() {
  const names = await listModels();
  setOptions(form.model, names);
  form.model.parentElement.hidden = names.length === 1;
  const remembered = new URLSearchParams(location.hash.slice(1));
  await chooseModel(names.includes(remembered.get("model")) ? remembered.get("model") : names[0]);
  for (const name of REMEMBERED.filter((name) => name !== "model" && remembered.has(name))) {
    form[name].value = remembered.get(name);
  }
}

/** Show the classes, presets and limits of a model. */
async function chooseModel(name) {
  model = await describeModel(name);
  form.model.value = name;
  const presets = Object.keys(model.presets);
  setOptions(form.preset, presets);
  form.preset.value = model.default_preset ?? presets[0];
  setOptions(form.other, ["", ...presets]);
  form.other.options[0].textContent = "nothing";
  form.guidance.placeholder = `${model.default_sampling.cfg_scale} by the preset`;
  form.count.max = model.limits.n;
  form.count.value = Math.min(form.count.value, model.limits.n);
  const classes = Array.isArray(model.classes) ? model.classes : [];
  byId("class-names").replaceChildren(...classes.map((value) => Object.assign(element("option"), { value })));
  const count = classes.length || model.classes;
  form.prompt.placeholder = count ? "a name or a number" : "what the image shows";
  const draws = count ? `${count} classes` : "draws from text";
  byId("about").textContent = `${name}: ${model.size} pixels, ${draws}, ${model.backend}`;
}

function setOptions(select, values) {
  select.replaceChildren(...values.map((value) => Object.assign(element("option", { text: value }), { value })));
}

/** Return the fields of a request for images with the settings of the form. */
function settingsOf(preset, seed) {
  const guidance = form.guidance.value;
  return {
    model: form.model.value,
    prompt: form.prompt.value,
    preset,
    n: Number(form.count.value),
    seed,
    index: 0,
    partial_images: Math.min(PARTIAL_IMAGES, model.limits.partial_images),
    ...(guidance && { guidance_scale: Number(guidance) }),
  };
}

/** Keep the settings in the address, so that they survive a reload and can be shared. */
function remember() {
  const values = REMEMBERED.map((name) => [name, form[name].value]).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(values)}`);
}

/** Draw the images of some requests, one after the other, and show them side by side. */
async function draw(requests, ask = generate) {
  running?.abort();
  const controller = (running = new AbortController());
  const { can_edit: canEdit } = model;
  const open = (image) => viewer.open(image, canEdit);
  const groups = requests.map(({ prompt, preset, n }) => new ImageGroup(`${prompt}, ${preset}`, n, open));
  const className = groups.length > 1 ? "request compared" : "request";
  byId("results").prepend(element("div", { className, children: groups.map((group) => group.element) }));
  setBusy(true);
  const done = await attempt(async () => {
    for (const [place, fields] of requests.entries()) {
      await drawGroup(groups[place], fields, ask, controller.signal);
    }
  });
  groups.forEach((group) => group.removeUnfinished());
  if (running === controller) {
    running = null;
    setBusy(false, done ? "Done." : "");
  }
}

/** Draw the images of one request. */
async function drawGroup(group, fields, ask, signal) {
  let timing = null;
  for await (const event of ask(fields, signal)) {
    group.figures[event.image_index].show(event, fields);
    timing = event.timing ?? timing;
  }
  group.finish(timing);
}

function setBusy(busy, text = "Drawing …") {
  byId("cancel").disabled = !busy;
  byId("status").textContent = text;
}

/** Run an action; show what went wrong. Returns whether nothing did. */
async function attempt(action) {
  const error = byId("error");
  error.hidden = true;
  try {
    await action();
    return true;
  } catch (failure) {
    if (failure.name === "AbortError") {
      return false;
    }
    error.textContent = failure.message;
    error.hidden = false;
    if (failure.status === 401) {
      byId("key").hidden = false;
      form.key.focus();
    }
    return false;
  }
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
