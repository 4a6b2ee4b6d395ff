// What is watched: a list that is edited in place.
import { $, element, short, tell } from "./main.js";

export class Watches {
  /** `report` is told of the last access whenever there is a new one. */
  constructor(report) {
    this.report = report;
    this.rows = new Map();
    this.last = "";
    $("watch-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      const watch = $("watch-new").value.trim();
      if (watch && await this.act("watch", { watch })) $("watch-new").value = "";
    });
  }

  /** Does something to the list; says why, if it cannot be done. */
  async act(what, body) {
    try {
      await tell(what, body);
      $("watch-error").hidden = true;
      return true;
    } catch (error) {
      $("watch-error").textContent = error.message;
      $("watch-error").hidden = false;
      return false;
    }
  }

  update({ watches, last }) {
    const there = new Set(watches.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (!there.has(id)) {
        row.node.remove();
        this.rows.delete(id);
      }
    }
    for (const watch of watches) this.row(watch);
    if (watches.length === 0 && !$("watches").firstElementChild) {
      $("watches").append(element("p", "empty", "Nothing is watched."));
    } else if (watches.length > 0) {
      $("watches").querySelector(".empty")?.remove();
    }
    const text = JSON.stringify(last);
    if (last && text !== this.last) this.report(last);
    this.last = text;
  }

  row({ id, watch, place, hits }) {
    let row = this.rows.get(id);
    if (!row) {
      row = this.make(id, watch);
      this.rows.set(id, row);
      $("watches").append(row.node);
    }
    row.place.textContent = place.Ok
      ? (place.Ok[0] === place.Ok[1] ? short(place.Ok[0]) : `${short(place.Ok[0])}–${short(place.Ok[1])}`) : place.Err;
    row.hits.replaceChildren(hits.toLocaleString("en"), element("small", "", hits === 1 ? " hit" : " hits"));
    row.node.classList.toggle("hot", hits !== row.before && row.before !== undefined);
    row.before = hits;
  }

  make(id, watch) {
    const input = element("input");
    input.value = watch;
    input.spellcheck = false;
    input.setAttribute("aria-label", `Watch ${id}`);
    const change = async () => {
      const now = input.value.trim();
      if (now === watch) return;
      if (now === "") input.value = watch;
      else if (!await this.act("watch", { watch: now, instead: id })) input.focus();
    };
    input.addEventListener("change", change);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") input.value = watch;
    });
    const remove = element("button", "quiet", "Remove");
    remove.type = "button";
    remove.addEventListener("click", () => this.act("unwatch", { id }));
    const [place, hits] = [element("span", "place"), element("span", "hits")];
    return { node: element("li", "", element("span", "id", `${id}`), input, place, hits, remove), place, hits };
  }
}
