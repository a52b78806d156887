// The images on the page: each request is a section, each image a figure that changes while it is drawn.

const SMALL = 128; // pixels a side; a smaller image is enlarged with sharp pixels

/** Return an element with a class, text and children. */
export function element(name, { className = "", text = "", children = [] } = {}) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  made.append(...children);
  return made;
}

/** The images of one request: a heading, and a figure for each image. */
export class ImageGroup {
  /**
   * @param {string} title what the images are
   * @param {number} count how many images will come
   * @param {(image: object) => void} open called with a finished image that the user chose
   */
  constructor(title, count, open) {
    this.title = title;
    this.heading = element("h2", { text: title });
    this.figures = Array.from({ length: count }, () => new ImageFigure(open));
    const images = element("div", { className: "images", children: this.figures.map((figure) => figure.element) });
    this.element = element("section", { children: [this.heading, images] });
  }

  /** Show how long the request took. */
  finish(timing) {
    this.heading.textContent = `${this.title} · ${timing.draw_seconds.toFixed(2)} s`;
  }

  /** Remove the figures that have no finished image, and the group if none has one. */
  removeUnfinished() {
    for (const figure of this.figures.filter((figure) => !figure.finished)) {
      figure.element.remove();
    }
    if (!this.figures.some((figure) => figure.finished)) {
      this.element.remove();
    }
  }
}

class ImageFigure {
  constructor(open) {
    this.finished = false;
    this.open = open;
    this.image = element("img");
    this.image.alt = "";
    this.button = element("button", { children: [this.image] });
    this.button.type = "button";
    this.button.disabled = true;
    this.caption = element("figcaption");
    this.progress = element("progress");
    this.progress.setAttribute("aria-label", "Progress of the image");
    this.element = element("figure", { children: [this.button, this.progress, this.caption] });
  }

  /** Show an event of the stream. `settings` are those of the request. */
  show(event, settings) {
    const source = `data:image/${event.output_format};base64,${event.b64_json}`;
    this.image.src = source;
    const [width, height] = event.size.split("x").map(Number);
    this.image.classList.toggle("small", width < SMALL);
    if (event.iterations) {
      this.progress.max = event.iterations;
      this.progress.value = event.iterations_done;
      return;
    }
    this.finished = true;
    this.progress.remove();
    const { prompt, class_name: name, class_number: number, seed, index } = event;
    const label = `${prompt || name || `class ${number}`}, seed ${seed}, image ${index}`;
    this.image.alt = label;
    this.caption.textContent = label;
    this.button.disabled = false;
    this.button.setAttribute("aria-label", `Enlarge ${label}`);
    const image = { source, content: event.b64_json, label, settings, seed, index, width, height };
    this.button.addEventListener("click", () => this.open(image));
  }
}
