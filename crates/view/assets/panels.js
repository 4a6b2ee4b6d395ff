// Figures, the chain of addresses, registers and the monitor.
import { size } from "./heat.js";
import { $, ask, element, short, tell } from "./main.js";

const MIPS_KEPT = 60;
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en");
const rate = (number) => (number >= 10_000 ? compact.format(number) : number >= 10 || number === 0 ? Math.round(number).toString() : number.toFixed(1));
const number = (count) => (count >= 10_000_000 ? compact.format(count) : whole.format(count));

export class Panels {
  constructor() {
    this.last = null;
    this.mips = [];
    this.chainAt = null;
    this.history = [];
    $("chain-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.follow($("chain-at").value);
    });
    for (const [button, word] of [["set-mark", "mark"], ["set-off", "off"]]) {
      $(button).addEventListener("click", () => tell("monitor", { line: `info working-set ${word}` }));
    }
    $("chain-address").addEventListener("click", () => this.follow($("chain-at").value));
    $("chain-watched").addEventListener("click", () => this.show(true));
    $("monitor-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.monitor($("monitor-line").value);
    });
    $("monitor-line").addEventListener("keydown", (event) => this.recall(event));
  }

  update(figures) {
    const before = this.last;
    // The machine's own clock: nothing is a second of a machine that stands.
    const seconds = before ? (figures.time - before.time) / 1e9 : 0;
    const per = (now, then) => (seconds > 0.05 && now >= then ? (now - then) / seconds : 0);
    this.last = figures;
    $("time").textContent = `${(figures.time / 1e9).toFixed(1)} s`;
    const [cpu, was] = [figures.vcpus[0], before?.vcpus[0]];
    if (!cpu) return;
    const sum = (of) => figures.vcpus.reduce((total, vcpu) => total + of(vcpu), 0);
    const old = (of) => before?.vcpus.reduce((total, vcpu) => total + of(vcpu), 0) ?? sum(of);
    const total = (of) => per(sum(of), old(of));
    if (cpu.rate !== null) {
      const mips = sum((vcpu) => vcpu.rate) / 1e6;
      this.mips.push(mips);
      this.mips = this.mips.slice(-MIPS_KEPT);
      $("mips").textContent = mips >= 100 ? Math.round(mips) : mips.toFixed(1);
      this.chart();
    }
    $("fault-rate").textContent = rate(total((vcpu) => vcpu.tlb.faults));
    $("walk-rate").textContent = rate(total((vcpu) => vcpu.tlb.walks));
    $("where").textContent = cpu.halted ? "halted" : [cpu.symbol ?? short(cpu.rip), cpu.process, `CPL ${cpu.cpl}`].filter(Boolean).join(" · ");
    this.tlb(cpu, was, per);
    this.faults(figures, before, per);
    this.devices(figures, before, per);
    this.registers(cpu, was);
    this.workingSet(figures);
    // What an expression names moves with the machine.
    if (!this.showsWatched && this.chainAt && !this.asking && /\$/.test(this.chainAt)) this.follow(this.chainAt, false);
  }

  chart() {
    const canvas = $("mips-chart"), ratio = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
    const context = canvas.getContext("2d"), most = Math.max(1, ...this.mips);
    const style = getComputedStyle(document.documentElement);
    const step = canvas.width / (MIPS_KEPT - 1), start = MIPS_KEPT - this.mips.length;
    const y = (mips) => canvas.height - 2 * ratio - mips / most * (canvas.height - 4 * ratio);
    context.beginPath();
    this.mips.forEach((mips, i) => context.lineTo((start + i) * step, y(mips)));
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = 1.6 * ratio;
    context.stroke();
    context.lineTo(canvas.width, canvas.height);
    context.lineTo(start * step, canvas.height);
    context.fillStyle = style.getPropertyValue("--accent-soft");
    context.globalCompositeOperation = "destination-over";
    context.fill();
  }

  /** Fills a table: rows of cells, the last of which is how much of the whole it is. */
  rows(id, rows, empty) {
    const body = $(id).tBodies[0];
    if (rows.length === 0) {
      const cell = element("td", "empty", empty);
      cell.colSpan = 6;
      body.replaceChildren(element("tr", "", cell));
      return;
    }
    const most = Math.max(1e-9, ...rows.map((row) => row.part));
    // Rows stay, so that bars move rather than appear.
    while (body.rows.length > rows.length) body.lastElementChild.remove();
    rows.forEach(({ cells, part }, i) => {
      let row = body.rows[i];
      if (row?.cells.length !== cells.length + 1) {
        const bar = element("td", "spark", element("div", "bar", element("i")));
        const made = element("tr", "", ...cells.map((_, at) => element("td", at > 0 ? "n" : "")), bar);
        if (row) row.replaceWith(made); else body.append(made);
        row = made;
      }
      cells.forEach((text, at) => { if (row.cells[at].textContent !== text) row.cells[at].textContent = text; });
      row.querySelector("i").style.width = `${Math.round(100 * part / most)}%`;
    });
  }

  tlb(cpu, was, per) {
    const names = [
      ["slow-path hits", "hits"], ["victim table hits", "victim_hits"], ["global page hits", "global_hits"], ["page walks", "walks"],
      ["walks that faulted", "faults"], ["pages flushed", "page_flushes"], ["contexts flushed", "context_flushes"],
      ["full flushes", "full_flushes"], ["tables grown", "grown"],
    ];
    const row = (name, now, then) => {
      const now_rate = per(now, then ?? now);
      return { cells: [name, number(now), rate(now_rate)], part: now_rate };
    };
    const rows = names.map(([name, key]) => row(name, cpu.tlb[key], was?.tlb[key]));
    const translator = cpu.translator;
    if (translator) {
      const before = was?.translator;
      rows.push(row("regions translated", translator.regions, before?.regions));
      rows.push(row("translated code entered", translator.entered, before?.entered));
      rows.push(row("entries filled for it", translator.refilled, before?.refilled));
    }
    this.rows("tlb", rows, "");
  }

  faults(figures, before, per) {
    const counts = new Map();
    const add = (of, at) => of?.vcpus.forEach((vcpu) => vcpu.delivered.forEach(({ vector, name, count }) => {
      const known = counts.get(vector) ?? { vector, name, count: [0, 0] };
      known.count[at] += count;
      counts.set(vector, known);
    }));
    add(figures, 0);
    add(before, 1);
    const all = [...counts.values()].sort((a, b) => b.count[0] - a.count[0]).slice(0, 14);
    this.rows("faults", all.map(({ vector, name, count: [now, then] }) => {
      const label = vector < 32 ? name : `${name} ${vector.toString(16)}h`;
      return { cells: [label, number(now), rate(per(now, before ? then : now))], part: now };
    }), "none yet");
  }

  devices(figures, before, per) {
    const all = figures.devices.map((device) => {
      const then = before?.devices.find((other) => other.name === device.name && other.ports === device.ports) ?? device;
      return { ...device, rate: per(device.reads + device.writes, then.reads + then.writes) };
    });
    all.sort((a, b) => b.reads + b.writes - a.reads - a.writes);
    this.rows("devices", all.filter((device) => device.reads + device.writes > 0).slice(0, 14).map((device) => ({
      cells: [`${device.name} ${device.ports ? "(ports)" : "(memory)"}`, number(device.reads), number(device.writes), rate(device.rate)],
      part: device.reads + device.writes,
    })), "no device has been accessed yet");
  }

  workingSet({ working_set: set, time }) {
    $("set").hidden = $("set-off").hidden = !set;
    $("set-mark").textContent = set ? "Mark anew" : "Mark";
    $("set-what").textContent = set ? `${size(set.total.all * 4096)} in ${((time - set.since) / 1e9).toFixed(1)} s since the mark, each page once`
      : "which pages each process touches from a mark on";
    if (!set) return;
    this.rows("set", set.spaces.map(({ root, process, pages }) => ({
      cells: [process ?? `CR3 ${short(root)}`, ...[pages.all, pages.read, pages.written, pages.fetched].map((count) => size(count * 4096))],
      part: pages.all,
    })), "nothing yet");
  }

  registers(cpu, was) {
    const before = new Map(was?.registers ?? []);
    $("registers-what").textContent = `${cpu.paging}, CPL ${cpu.cpl}${cpu.symbol ? `, in ${cpu.symbol}` : ""}`;
    $("registers").replaceChildren(...cpu.registers.map(([name, value]) => {
      const changed = before.has(name) && before.get(name) !== value;
      return element("div", changed ? "changed" : "", element("dt", "", name), element("dd", "", value));
    }));
  }

  /** Shows the last watched access, or else an address. */
  show(watched) {
    this.showsWatched = watched;
    $("chain-watched").setAttribute("aria-pressed", watched);
    $("chain-address").setAttribute("aria-pressed", !watched);
    if (watched && this.lastAccess) this.showAccess(this.lastAccess);
  }

  /** Takes the last access to what is watched. It is shown from the first one on, until an address is asked for. */
  watched(access) {
    const first = !this.lastAccess;
    this.lastAccess = access;
    $("chain-watched").disabled = false;
    if (first && !this.byHand) this.show(true);
    else if (this.showsWatched) this.showAccess(access);
  }

  showAccess(access) {
    const kinds = { r: "read", w: "write", x: "fetch", pr: "page walk’s read", pw: "page walk’s write", dr: "descriptor read", dw: "descriptor write", dmar: "DMA read", dmaw: "DMA write" };
    const kind = kinds[access.kind] ?? access.kind;
    const agent = access.device ?? `${access.by ?? short(access.rip)} on cpu${access.cpu}, CPL ${access.cpl}`;
    $("chain-what").textContent = `${kind} of ${access.size} byte${access.size === 1 ? "" : "s"} by ${agent}`;
    this.stops([
      ["GVA", "guest virtual", access.gva, access.gva ? access.at ?? "" : `a ${access.device ? "device" : "page walk"} has none`],
      ["GPA", "guest’s page tables", access.gpa, ""],
      ["HVA", "Vitrine’s map", access.hva, access.hva ? "Vitrine’s own memory" : "a device answered"],
      ["HPA", "host’s page tables", access.hpa, access.hpa ? "a real memory chip" : access.hva ? "hidden from this user" : ""],
      ["value", kind, access.value, access.old && access.old !== access.value ? `before: ${access.old}` : "", "value"],
    ]);
    const vcpu = [["rip", `${access.rip}${access.by ? `  ${access.by}` : ""}`], ["CR3", access.cr3]];
    this.steps([...(access.device ? [] : vcpu), ["watch", String(access.watch)]]);
  }

  /** Follows an address through all four. `byHand`: somebody has asked for it just now. */
  async follow(at, byHand = true) {
    if (!at.trim()) return;
    if (byHand) {
      this.byHand = true;
      this.show(false);
    }
    const turn = this.turn = (this.turn ?? 0) + 1;
    this.chainAt = at;
    this.asking = true;
    try {
      const chain = await ask("chain", at);
      // Something else may have been asked for meanwhile.
      if (turn !== this.turn || this.showsWatched) return;
      $("chain-what").textContent = chain.symbol && chain.symbol !== at ? `${at} is in ${chain.symbol}` : "";
      this.showChain(chain);
    } catch (error) {
      if (turn !== this.turn) return;
      $("chain-what").textContent = error.message;
      this.chainAt = null;
    } finally {
      if (turn === this.turn) this.asking = false;
    }
  }

  /** Shows the stops of a way: label, what leads there, address, note, kind. */
  stops(all) {
    const stop = ([label, by, address, note, kind = ""]) => {
      const text = element("span", "address");
      const zeros = /^0*(?=.)/.exec(address ?? "")[0].length;
      text.append(...(address ? [element("i", "", address.slice(0, zeros)), address.slice(zeros)] : ["none"]));
      const made = element("li", `stop ${kind} ${address ? "" : "none"}`,
        element("span", "label", element("b", "", label), element("span", "", by)), text, element("span", "note", note ?? ""));
      return made;
    };
    $("chain").replaceChildren(...all.map(stop));
  }

  steps(all) {
    $("chain-steps").replaceChildren(...all.flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
  }

  showChain(chain) {
    const hpa = chain.hpa?.startsWith("0x") ? chain.hpa.slice(2).padStart(16, "0") : null;
    const bytes = chain.bytes.map((byte) => byte.toString(16).padStart(2, "0"));
    const word = bytes.slice(0, 8).reverse().join("");
    const letters = chain.bytes.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    this.stops([
      ["GVA", "guest virtual", chain.gva, chain.symbol ?? ""],
      ["GPA", "guest’s page tables", chain.gpa, chain.gpa ? chain.region ?? "nothing answers" : "not mapped"],
      ["HVA", "Vitrine’s map", chain.hva, chain.hva ? "Vitrine’s own memory" : "no memory there"],
      ["HPA", "host’s page tables", hpa, hpa ? "a real memory chip" : chain.hpa ?? ""],
      ["value", bytes.length ? `${Math.min(8, bytes.length)} bytes` : "", bytes.length ? word : null, bytes.length ? `“${letters}”` : "", "value"],
    ]);
    this.steps(chain.steps);
  }

  async monitor(line) {
    const out = $("monitor-out");
    if (!line.trim()) return;
    this.history.push(line);
    this.at = this.history.length;
    $("monitor-line").value = "";
    let text;
    try {
      text = await tell("monitor", { line });
    } catch (error) {
      text = `${error.message}\n`;
    }
    // What scrolled away long ago is let go.
    out.textContent = `${out.textContent.slice(-200_000).trimEnd()}\n\n(vitrine) ${line}\n${text}`;
    out.scrollTop = out.scrollHeight;
  }

  recall(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || this.history.length === 0) return;
    event.preventDefault();
    this.at = Math.max(0, Math.min(this.history.length, (this.at ?? this.history.length) + step));
    $("monitor-line").value = this.history[this.at] ?? "";
  }
}
