// The dialog that shows one image: enlarged, with what can be done with it.

import { Mask } from "./mask.js";

const byId = (id) => document.getElementById(id);

/** The dialog of one image. */
export class Viewer {
  /**
   * @param {object} actions what the buttons do: `repeat(image)`, `vary(image)` and `edit(image, prompt, mask)`
   */
  constructor(actions) {
    this.image = null;
    this.dialog = byId("viewer");
    this.form = byId("edit-form");
    this.mask = new Mask(byId("mask"));
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("repeat").addEventListener("click", () => this.#leave(() => actions.repeat(this.image)));
    byId("vary").addEventListener("click", () => this.#leave(() => actions.vary(this.image)));
    byId("edit").addEventListener("click", () => this.#showEdit(this.form.hidden));
    byId("clear").addEventListener("click", () => this.mask.reset(this.image));
    this.form.brush.addEventListener("input", () => (this.mask.brush = this.form.brush.value / 100));
    this.form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (this.mask.empty) {
        byId("mask").focus();
        return;
      }
      const mask = await this.mask.blob();
      this.#leave(() => actions.edit(this.image, this.form.prompt.value, mask));
    });
  }

  /** Show an image. `canEdit` is whether its model can edit. */
  open(image, canEdit) {
    this.image = image;
    byId("viewer-title").textContent = image.label;
    const shown = byId("viewer-image");
    shown.src = image.source;
    shown.alt = image.label;
    shown.classList.toggle("small", image.width < 512);
    const download = byId("download");
    download.href = image.source;
    download.download = `${image.label.replaceAll(/[^\p{L}\p{N}]+/gu, "-")}.png`;
    byId("edit").hidden = !canEdit;
    this.form.prompt.value = image.settings.prompt;
    this.#showEdit(false);
    this.dialog.showModal();
  }

  #showEdit(shown) {
    this.mask.reset(this.image);
    this.form.hidden = byId("mask").hidden = !shown;
    byId("edit").setAttribute("aria-expanded", shown);
    if (shown) {
      byId("mask").focus();
    }
  }

  #leave(action) {
    this.dialog.close();
    action();
  }
}
