// Painting a mask over an image: with a mouse, a finger, a pen, or the keyboard.

const COLOR = "rgb(255 0 120)";
const OPACITY = 0.6;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A mask of as many pixels as the image. What is painted on its canvas is to be drawn again. */
export class Mask {
  constructor(canvas) {
    this.canvas = canvas;
    this.brush = 0.15; // the diameter, as a share of the image's shorter side
    this.painted = document.createElement("canvas"); // opaque where the mask is painted
    this.last = null; // the end of the stroke, in pixels
    this.cursor = null; // the place of the keyboard, in pixels
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    canvas.addEventListener("pointerup", () => (this.last = null));
    canvas.addEventListener("pointercancel", () => (this.last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#moveTo(null));
  }

  /** Start with an empty mask for an image of so many pixels. */
  reset({ width, height }) {
    for (const canvas of [this.canvas, this.painted]) {
      Object.assign(canvas, { width, height });
    }
    this.last = this.cursor = null;
  }

  get empty() {
    const { width, height } = this.painted;
    const pixels = this.painted.getContext("2d").getImageData(0, 0, width, height).data;
    return !pixels.some((value, place) => place % 4 === 3 && value > 0);
  }

  /** Return the mask as a PNG that is transparent where it is painted. */
  blob() {
    const mask = document.createElement("canvas");
    mask.width = this.painted.width;
    mask.height = this.painted.height;
    const context = mask.getContext("2d");
    context.fillRect(0, 0, mask.width, mask.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.painted, 0, 0);
    return new Promise((resolve) => mask.toBlob(resolve, "image/png"));
  }

  #press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.#place(event);
    this.#paint(this.last, this.last);
  }

  #drag(event) {
    if (this.last) {
      const place = this.#place(event);
      this.#paint(this.last, place);
      this.last = place;
    }
  }

  #key(event) {
    const ends = [this.canvas.width, this.canvas.height];
    const at = this.cursor ?? ends.map((end) => end / 2);
    const step = STEPS[event.key];
    if (step) {
      const distance = Math.max(1, Math.min(...ends) / 32);
      this.#moveTo(at.map((value, axis) => Math.min(ends[axis], Math.max(0, value + step[axis] * distance))));
    } else if (event.key === " ") {
      this.cursor = at;
      this.#paint(at, at);
    } else {
      return;
    }
    event.preventDefault();
  }

  #moveTo(cursor) {
    this.cursor = cursor;
    this.#show();
  }

  /** Return the diameter of the brush in pixels. */
  #diameter() {
    return this.brush * Math.min(this.canvas.width, this.canvas.height);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #paint(from, to) {
    const context = this.painted.getContext("2d");
    const width = Math.max(1, this.#diameter());
    context.fillStyle = context.strokeStyle = COLOR;
    context.beginPath();
    context.arc(...from, width / 2, 0, 2 * Math.PI); // a line without length would leave nothing
    context.fill();
    context.lineCap = "round";
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    this.#show();
  }

  #show() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalAlpha = OPACITY;
    context.drawImage(this.painted, 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) {
      context.strokeStyle = COLOR;
      context.lineWidth = Math.max(1, this.canvas.width / 128);
      context.beginPath();
      context.arc(...this.cursor, Math.max(1, this.#diameter() / 2), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
