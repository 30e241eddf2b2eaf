// The list: only the rows that are seen exist.

class ImageList {
  /** `describe(index)` says what the row of an image shows. */
  constructor(element, describe) {
    this.element = element;
    this.describe = describe;
    this.order = [];
    this.rows = new Map(); // by position
    this.isPrinting = false;
    const update = () => requestAnimationFrame(() => this.update());
    window.addEventListener("scroll", update, { passive: true });
    window.addEventListener("resize", () => this.show(this.order));
    element.addEventListener("keydown", event => this.moveFocus(event));
  }

  get rowHeight() {
    return parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row-height"));
  }

  /** Shows images, by their indices, in this order. */
  show(order) {
    const focused = this.focused();
    this.order = order;
    this.element.style.height = `${order.length * this.rowHeight}px`;
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.update();
    if (focused !== undefined && order.includes(focused)) this.focus(focused);
  }

  update() {
    if (!this.element.offsetParent) return;
    const height = this.rowHeight;
    const top = -this.element.getBoundingClientRect().top;
    const printing = this.isPrinting || matchMedia("print").matches; // before a page is printed, the media are still those of the screen
    const first = printing ? 0 : Math.max(0, Math.floor(top / height) - 4);
    const last = printing ? this.order.length : Math.min(this.order.length, Math.ceil((top + window.innerHeight) / height) + 4);
    for (const [position, row] of this.rows) {
      const isFocused = row.contains(document.activeElement);
      if ((position < first || position >= last) && !isFocused) {
        row.remove();
        this.rows.delete(position);
      }
    }
    for (let position = first; position < last; position += 1) {
      if (!this.rows.has(position)) this.rows.set(position, this.insert(position, height));
    }
  }

  insert(position, height) {
    const row = makeRow(this.order[position], this.describe(this.order[position]));
    row.style.transform = `translateY(${position * height}px)`;
    row.setAttribute("aria-setsize", this.order.length);
    row.setAttribute("aria-posinset", position + 1);
    const following = [...this.rows].filter(([other]) => other > position).sort(([a], [b]) => a - b)[0];
    this.element.insertBefore(row, following ? following[1] : null); // the order of the Tab key
    return row;
  }

  /** The index of the image whose row has the focus. */
  focused() {
    const row = document.activeElement?.closest?.(".list li");
    return row ? Number(row.dataset.index) : undefined;
  }

  focus(index) {
    const position = this.order.indexOf(index);
    if (position < 0) return;
    const height = this.rowHeight;
    const top = this.element.getBoundingClientRect().top + position * height;
    const columns = document.getElementById("columns"); // which stay where they are
    const header = columns.offsetHeight + (parseFloat(getComputedStyle(columns).top) || 0);
    if (top < header) window.scrollBy(0, top - header);
    else if (top + height > window.innerHeight) window.scrollBy(0, top + height - window.innerHeight);
    this.update();
    this.rows.get(position).querySelector("a").focus({ preventScroll: true });
  }

  moveFocus(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
    const focused = this.focused();
    if (!step || focused === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const position = this.order.indexOf(focused) + step;
    this.focus(this.order[Math.min(Math.max(position, 0), this.order.length - 1)]);
  }
}

/** The row of an image: a link with its picture, name, bars and decision. */
function makeRow(index, { name, isEmpty, picture, bars, decision, comment }) {
  const row = document.createElement("li");
  row.dataset.index = index;
  const link = make("a", "row");
  link.href = `#${index + 1}`;
  link.setAttribute("aria-label", [name, ...bars.map(bar => `${bar.title} ${bar.text}`), DECISIONS[decision] ?? "undecided", isEmpty && "empty mask", comment].filter(Boolean).join(", "));
  const image = make("img", "small");
  image.alt = "";
  image.decoding = "async";
  if (picture) image.src = picture;
  else image.style.visibility = "hidden";
  const who = make("span", "who");
  who.append(make("span", "name", name));
  if (isEmpty) who.append(Object.assign(make("span", "note", "empty mask"), { title: "Its soft Dice confidence is the product of 1 − p over all pixels: close to 0 even where every p is small." }));
  if (comment) who.append(make("span", "note", comment.length > 60 ? `${comment.slice(0, 60)} …` : comment));
  link.append(image, who, ...bars.map(makeBar), make("span", `badge ${decision || "undecided"}`, DECISIONS[decision] ?? "undecided"));
  row.append(link);
  return row;
}

function makeBar({ title, text, part, measured }) {
  const score = make("span", "score");
  const bar = make("span", measured ? "bar measured" : "bar");
  const filled = make("i", "");
  filled.style.width = `${100 * Math.min(Math.max(part, 0), 1)}%`;
  bar.append(filled, make("b", "", text));
  score.append(make("em", "", title), bar);
  return score;
}

/** A colour and what it means. */
function colourKey(colour, text, className = "key") {
  const key = make("span", className);
  key.style.background = colour;
  const label = make("span", "");
  label.append(key, ` ${text}`);
  return label;
}

/** An element with a class and a text. */
function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
