// The heat map of guest physical memory: what was touched over time (a waterfall, newest on top), and now.
import { $, ask, element, short } from "./main.js";

const PAGE = 4096;
const KEPT = 240;            // rounds that are remembered
const ROW = 2;               // height of a round, in CSS pixels
const CELLS_MAX = 1 << 20;   // cells of fading heat that are remembered
const FADES = 0.72;          // of heat, from one round to the next
const KINDS = ["read", "write", "fetch"];
const [READ, OTHERS] = [1, 6];

const units = [["GiB", 30], ["MiB", 20], ["KiB", 10]];
export function size(bytes) {
  if (bytes === 0) return "0";
  const [name, shift] = units.find(([, shift]) => bytes >= 2 ** shift) ?? ["bytes", 0];
  const number = bytes / 2 ** shift;
  return `${Number.isInteger(number) ? number : number.toFixed(number < 10 ? 2 : 1)} ${name}`;
}

export class Heat {
  constructor() {
    this.rounds = [];
    this.end = 0;
    this.range = [0, 0];
    this.shown = [true, true, true];
    this.waterfall = $("waterfall");
    this.pages = $("pages");
    for (const key of document.querySelectorAll("[data-kind]")) {
      key.addEventListener("click", () => {
        const kind = Number(key.dataset.kind);
        this.shown[kind] = !this.shown[kind];
        key.setAttribute("aria-pressed", this.shown[kind]);
        this.draw();
      });
    }
    $("zoom-in").addEventListener("click", () => this.zoom(0.5, 0.5));
    $("zoom-out").addEventListener("click", () => this.zoom(2, 0.5));
    $("zoom-all").addEventListener("click", () => this.show(0, this.end));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.waterfall);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Takes where memory ends. */
  extent(end) {
    if (end === this.end || end === 0) return;
    this.end = end;
    this.cellShift = 12;
    while (end / 2 ** this.cellShift > CELLS_MAX) this.cellShift += 1;
    this.cells = KINDS.map(() => new Float32Array(Math.ceil(end / 2 ** this.cellShift)));
    this.show(0, end);
  }

  /** Takes a round. */
  add(round) {
    round.at = Date.now();
    this.rounds.unshift(round);
    this.rounds.length = Math.min(this.rounds.length, KEPT);
    const kib = (pages) => size(pages * PAGE);
    $("heat-what").textContent = `in the last half second: ${kib(round.read)} read, ${kib(round.written)} written, `
      + `${kib(round.fetched)} fetched${round.lost ? "; more than was noted" : ""}`;
    if (!this.cells) return;
    for (const cells of this.cells) for (let i = 0; i < cells.length; i++) cells[i] *= FADES;
    for (const [first, len, bits] of round.runs) {
      const scale = 2 ** (round.shift - this.cellShift);
      const from = Math.floor(first * scale), to = Math.max(from + 1, Math.ceil((first + len) * scale));
      const seen = this.seen(bits);
      for (let kind = 0; kind < 3; kind++) if (seen >> kind & 1) this.cells[kind].fill(1, from, to);
    }
    this.draw();
  }

  /** Shows these addresses. */
  show(from, to) {
    const least = PAGE * 64;
    const wide = Math.min(this.end, Math.max(least, to - from));
    const start = Math.max(0, Math.min(this.end - wide, from));
    this.range = [Math.floor(start / PAGE) * PAGE, Math.ceil((start + wide) / PAGE) * PAGE];
    this.draw();
  }

  /** Shows `factor` times as much, keeping what is at `at` (0 to 1) where it is. */
  zoom(factor, at) {
    const [from, to] = this.range;
    const wide = Math.max(PAGE * 64, (to - from) * factor);
    const middle = from + (to - from) * at;
    this.show(middle - wide * at, middle + wide * (1 - at));
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim().slice(1);
      return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
    };
    return { kinds: KINDS.map((kind) => rgb(`--${kind}`)), ground: rgb("--well") };
  }

  /** Fits a canvas to its place; gives its context. */
  canvas(canvas) {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const wide = Math.round(canvas.clientWidth * ratio), high = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    return { context: canvas.getContext("2d"), wide, high, ratio };
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      if (this.end === 0 || this.waterfall.clientWidth === 0) return;
      this.palette = this.colours();
      this.drawWaterfall();
      this.drawPages();
      this.drawAxis();
    });
  }

  /** Mixes the colours of the kinds by how much of each there is. */
  mix(pixels, at, amounts) {
    const { kinds, ground } = this.palette;
    let total = 0, most = 0;
    for (let kind = 0; kind < 3; kind++) {
      total += amounts[kind];
      most = Math.max(most, amounts[kind]);
    }
    const strength = most > 0 ? 0.3 + 0.7 * Math.sqrt(Math.min(1, most)) * Math.min(1, most * 4) : 0;
    for (let channel = 0; channel < 3; channel++) {
      let colour = ground[channel];
      if (total > 0) {
        const mixed = (kinds[0][channel] * amounts[0] + kinds[1][channel] * amounts[1] + kinds[2][channel] * amounts[2]) / total;
        colour += (mixed - colour) * strength;
      }
      pixels[at + channel] = colour;
    }
    pixels[at + 3] = 255;
  }

  /** The kinds whose colours a page gets: nearly all that is written or fetched is read, too. */
  seen(bits) {
    const shown = this.shown.reduce((mask, on, kind) => mask | (on ? 1 << kind : 0), 0) & bits;
    return shown & OTHERS ? shown & ~READ : shown;
  }

  /** How much of each pixel of a row was touched, by kind. */
  row(round, wide) {
    const [from, to] = this.range;
    const amounts = KINDS.map(() => new Float32Array(wide));
    const scale = wide / (to - from), unit = 2 ** round.shift;
    for (const [first, len, bits] of round.runs) {
      const start = (first * unit - from) * scale, end = ((first + len) * unit - from) * scale;
      if (end <= 0 || start >= wide) continue;
      const last = Math.min(wide - 1, Math.ceil(end) - 1);
      const seen = this.seen(bits);
      for (let x = Math.max(0, Math.floor(start)); x <= last; x++) {
        const part = Math.min(end, x + 1) - Math.max(start, x);
        for (let kind = 0; kind < 3; kind++) if (seen >> kind & 1) amounts[kind][x] += part;
      }
    }
    return amounts;
  }

  drawWaterfall() {
    const { context, wide, high, ratio } = this.canvas(this.waterfall);
    if (wide === 0 || high === 0) return;
    const image = context.createImageData(wide, high);
    const step = Math.max(1, Math.round(ROW * ratio));
    const amounts = [0, 0, 0];
    for (let y = 0; y < high; y += step) {
      const round = this.rounds[y / step];
      const row = round && this.row(round, wide);
      for (let x = 0; x < wide; x++) {
        for (let kind = 0; kind < 3; kind++) amounts[kind] = row ? row[kind][x] : 0;
        this.mix(image.data, (y * wide + x) * 4, amounts);
      }
      for (let more = 1; more < step && y + more < high; more++) {
        image.data.copyWithin((y + more) * wide * 4, y * wide * 4, (y + 1) * wide * 4);
      }
    }
    context.putImageData(image, 0, 0);
  }

  /** Rows and columns of the second map: the whole range, in cells that are as large as fits. */
  grid() {
    const { wide, high, ratio } = this.canvas(this.pages);
    const [from, to] = this.range;
    const count = (to - from) / 2 ** this.cellShift;
    let side = Math.max(1, Math.floor(Math.sqrt(wide * high / count)));
    const fits = (side) => Math.floor(wide / side) * Math.floor(high / side) >= count;
    while (side > 1 && !fits(side)) side -= 1;
    side = Math.min(side, Math.round(14 * ratio));
    const columns = Math.max(1, Math.floor(wide / side)), most = Math.max(1, Math.floor(high / side));
    const each = Math.max(1, Math.ceil(count / (columns * most))), rows = Math.max(1, Math.ceil(count / each / columns));
    // Cells may be taller than wide, to use the height there is.
    const tall = Math.max(1, Math.min(side * 2, Math.floor(high / rows)));
    return { wide, high, side, tall, columns, rows, each, count };
  }

  drawPages() {
    const { wide, high, side, tall, columns, rows, each, count } = this.grid();
    if (wide === 0 || high === 0) return;
    const context = this.pages.getContext("2d");
    const image = context.createImageData(wide, high);
    const base = Math.floor(this.range[0] / 2 ** this.cellShift);
    const amounts = [0, 0, 0], gap = side > 4 ? 1 : 0, ground = this.palette.ground;
    for (let at = 0; at < image.data.length; at += 4) image.data.set([...ground, 255], at);
    for (let cell = 0; cell < columns * rows && cell * each < count; cell++) {
      for (let kind = 0; kind < 3; kind++) {
        let most = 0;
        for (let i = 0; i < each; i++) most = Math.max(most, this.cells[kind][base + cell * each + i] ?? 0);
        amounts[kind] = most < 0.03 ? 0 : most;
      }
      if (amounts[0] + amounts[1] + amounts[2] === 0) continue;
      const left = cell % columns * side, top = Math.floor(cell / columns) * tall;
      const first = (top * wide + left) * 4;
      this.mix(image.data, first, amounts);
      const colour = image.data.slice(first, first + 4);
      for (let y = 0; y < tall - gap; y++) for (let x = 0; x < side - gap; x++) image.data.set(colour, ((top + y) * wide + left + x) * 4);
    }
    context.putImageData(image, 0, 0);
    $("cell-size").textContent = `each cell ${size(each * 2 ** this.cellShift)}`;
  }

  drawAxis() {
    const [from, to] = this.range, wide = to - from;
    // Round numbers, as many as have room.
    let step = PAGE;
    while (wide / step > (innerWidth < 640 ? 4 : 9)) step *= 2;
    const ticks = [];
    for (let at = Math.ceil(from / step) * step; at < to; at += step) {
      const tick = element("span", "", `0x${at.toString(16)}`);
      const part = (at - from) / wide;
      tick.style.left = `${100 * part}%`;
      tick.className = part < 0.02 ? "first" : "";
      if (part < 0.95) ticks.push(tick);
    }
    $("axis").replaceChildren(...ticks);
    $("heat-range").textContent = `${size(to - from)} of ${size(this.end)}`;
  }

  /** The address and round under a pointer. */
  under(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const [from, to] = this.range;
    if (canvas === this.waterfall) {
      const bytes = (to - from) / box.width;
      return { gpa: from + bytes * x, bytes, round: this.rounds[Math.floor(y / ROW)] };
    }
    const { wide, side, tall, columns, each } = this.grid();
    const ratio = wide / box.width;
    const cell = Math.floor(y * ratio / tall) * columns + Math.min(columns - 1, Math.floor(x * ratio / side));
    const bytes = each * 2 ** this.cellShift;
    return { gpa: Math.min(to - 1, Math.floor(from / bytes) * bytes + cell * bytes), bytes, round: this.rounds[0] };
  }

  listen() {
    const drags = new Map();
    for (const canvas of [this.waterfall, this.pages]) {
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        drags.set(event.pointerId, { x: event.clientX, from: event.clientX, moved: false });
      });
      canvas.addEventListener("pointermove", (event) => {
        const drag = drags.get(event.pointerId);
        if (drag && canvas === this.waterfall) this.drag(canvas, drags, drag, event.clientX);
        else this.point(canvas, event);
      });
      const end = (event) => {
        const drag = drags.get(event.pointerId);
        drags.delete(event.pointerId);
        if (drag && !drag.moved && event.type === "pointerup") this.page(this.under(canvas, event).gpa);
      };
      canvas.addEventListener("pointerup", end);
      canvas.addEventListener("pointercancel", end);
      canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
      canvas.addEventListener("wheel", (event) => {
        // Without a modifier the wheel scrolls the page, as everywhere.
        if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;
        event.preventDefault();
        const box = canvas.getBoundingClientRect();
        this.zoom(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width);
      }, { passive: false });
    }
    this.waterfall.addEventListener("dblclick", (event) => {
      const box = this.waterfall.getBoundingClientRect();
      this.zoom(0.4, (event.clientX - box.left) / box.width);
    });
    this.waterfall.addEventListener("keydown", (event) => {
      const wide = this.range[1] - this.range[0];
      const act = {
        "+": () => this.zoom(0.5, 0.5), "-": () => this.zoom(2, 0.5), "0": () => this.show(0, this.end),
        ArrowLeft: () => this.show(this.range[0] - wide / 8, this.range[1] - wide / 8),
        ArrowRight: () => this.show(this.range[0] + wide / 8, this.range[1] + wide / 8),
      }[event.key];
      if (act) { act(); event.preventDefault(); }
    });
  }

  /** One finger (or the mouse) moves the range, two zoom it. */
  drag(canvas, drags, drag, x) {
    if (Math.abs(x - drag.from) > 4) drag.moved = true;
    const box = canvas.getBoundingClientRect(), wide = this.range[1] - this.range[0];
    const others = [...drags.values()].filter((other) => other !== drag);
    if (others.length === 0) {
      if (drag.moved) {
        const by = (drag.x - x) / box.width * wide;
        if (Math.abs(by) >= PAGE) { this.show(this.range[0] + by, this.range[1] + by); drag.x = x; }
      }
      return;
    }
    const before = Math.abs(drag.x - others[0].x), after = Math.abs(x - others[0].x);
    if (before > 8 && after > 8) this.zoom(before / after, ((x + others[0].x) / 2 - box.left) / box.width);
    drag.x = x;
  }

  point(canvas, event) {
    const { gpa, bytes, round } = this.under(canvas, event);
    const first = Math.floor(gpa / PAGE) * PAGE, last = Math.max(first + PAGE, first + bytes) - 1;
    const kinds = KINDS.filter((_, kind) => round?.runs.some(([at, len, bits]) => {
      const unit = 2 ** round.shift;
      return bits >> kind & 1 && at * unit <= last && (at + len) * unit > first;
    }));
    const ago = round ? `${((Date.now() - round.at) / 1000).toFixed(1)} s ago` : "";
    const tip = $("tip");
    tip.textContent = `gpa ${first.toString(16)}–${last.toString(16)}\n${round ? kinds.join(", ") || "not touched" : "not noted"} ${ago}`;
    tip.hidden = false;
    const box = this.waterfall.parentElement.getBoundingClientRect();
    const x = Math.min(box.width - tip.offsetWidth, Math.max(0, event.clientX - box.left + 12));
    tip.style.left = `${x}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  }

  /** Tells of a page. */
  async page(gpa) {
    const card = $("page-card");
    const at = (Math.floor(gpa / PAGE) * PAGE).toString(16);
    const close = element("button", "quiet", "Close");
    close.type = "button";
    close.addEventListener("click", () => { card.hidden = true; });
    const head = element("div", "row", element("h3", "", `Page at gpa ${at}`), close);
    card.hidden = false;
    try {
      const page = await ask("page", at);
      const list = element("dl", "");
      const line = (name, text) => list.append(element("dt", "", name), element("dd", "", text));
      line("belongs to", page.region ?? "nothing: reads give all ones");
      if (page.hva) line("hva", short(page.hva));
      for (const [gva, rights, symbol] of page.mapped) line("mapped at", `${short(gva)}  ${rights}${symbol ? `  ${symbol}` : ""}`);
      if (page.mapped.length === 0) line("mapped", "nowhere in the current address space");
      if (page.more) line("", "… and perhaps at further addresses");
      card.replaceChildren(head, list);
    } catch (error) {
      card.replaceChildren(head, element("p", "empty", error.message));
    }
  }
}
