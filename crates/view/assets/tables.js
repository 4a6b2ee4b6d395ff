// The page tables as a tree that is unfolded table by table.
import { $, ask, element, short } from "./main.js";
import { size } from "./heat.js";

export class Tables {
  constructor() {
    $("root-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.show($("root").value.trim());
    });
    this.roots = "";
  }

  /** Takes note of the address spaces that there are. */
  update(figures) {
    const spaces = figures.vcpus.map(({ cr3, process }, cpu) => [`cpu${cpu}${process ? `: ${process}` : ""}`, cr3]);
    const all = [...spaces, ...figures.processes];
    const text = JSON.stringify(all);
    if (text === this.roots) return;
    this.roots = text;
    $("roots").replaceChildren(...all.map(([name, root]) => {
      const option = element("option", "", name);
      option.value = short(root);
      return option;
    }));
  }

  async show(root) {
    const tree = $("tables");
    try {
      const table = await ask("table", root);
      tree.replaceChildren(element("div", "row absent", `${table.name} at gpa ${short(table.gpa)}`), ...this.entries(table));
    } catch (error) {
      tree.replaceChildren(element("p", "empty", error.message));
    }
  }

  entries(table) {
    return table.entries.map((entry) => this.entry(table, entry));
  }

  entry(table, entry) {
    const last = entry.index + entry.count - 1;
    const index = entry.count > 1 ? `[${entry.index}…${last}]` : `[${entry.index}]`;
    const node = element("div", "node");
    node.setAttribute("role", "treeitem");
    const parts = (twist, ...more) => [element("span", "twist", twist), element("span", "index", index), ...more];
    if (!entry.table && !entry.page) {
      const what = entry.bits.length && entry.bits[0] !== "P" ? `not present: ${entry.raw}` : "not present";
      node.append(element("div", "row absent", ...parts("", element("span", "", `${entry.count > 1 ? `${entry.count} entries ` : ""}${what}`))));
      return node;
    }
    const gva = element("span", "", short(entry.gva)), bits = element("span", "bits", entry.bits.join(" "));
    bits.title = `entry ${entry.raw}`;
    if (entry.page) {
      const [gpa, bytes] = entry.page;
      const what = `${entry.count > 1 ? `${entry.count} × ` : ""}${size(bytes)} at ${short(gpa)}`;
      node.append(element("div", "row", ...parts("·", gva, bits, element("span", "to", what))));
      return node;
    }
    const [gpa, level] = entry.table;
    const row = element("button", "row", ...parts("▸", gva, bits, element("span", "to", `table ${short(gpa)}`)));
    row.type = "button";
    row.setAttribute("aria-expanded", "false");
    const children = element("div", "children");
    children.hidden = true;
    row.addEventListener("click", async () => {
      const open = children.hidden;
      children.hidden = !open;
      row.setAttribute("aria-expanded", open);
      row.firstElementChild.textContent = open ? "▾" : "▸";
      if (!open) return;
      try {
        children.replaceChildren(...this.entries(await ask("table", `${gpa} ${level} ${entry.gva}`)));
      } catch (error) {
        children.replaceChildren(element("p", "empty", error.message));
      }
    });
    node.append(row, children);
    return node;
  }
}
