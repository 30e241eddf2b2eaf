// Decisions: kept in the browser, saved as CSV and JSON, loaded again.

const DECISIONS = { accept: "accepted", correct: "to correct", reject: "rejected" };
const COLUMNS = ["image", "decision", "comment", "time", "run"];

/** The decisions of a run, {decision, comment, time, result} by the name of the image. */
class DecisionStore {
  /** `results` are digests of what was predicted of the images, by their names. */
  constructor(fingerprint, results = new Map()) {
    this.fingerprint = fingerprint;
    this.results = results;
    this.key = `review:${fingerprint}`;
    this.entries = new Map();
    this.view = {};
    this.isKept = true; // by the browser
    this.unsaved = false;
    this.takeOver();
    this.read();
  }

  /** Keeps what was decided on the same results of images on another page, such as before there were more of them. */
  takeOver() {
    try {
      if (localStorage.getItem(this.key) !== null) return;
      for (const key of Object.keys(localStorage).filter(one => one.startsWith("review:"))) {
        for (const [name, entry] of Object.entries(JSON.parse(localStorage.getItem(key)).decisions ?? {})) {
          if (entry.result && entry.result === this.results.get(name) && entry.time > this.get(name).time) this.entries.set(name, entry);
        }
      }
      if (this.entries.size) this.write(false);
    } catch { // forbidden, or of another program
      this.entries.clear();
    }
  }

  get(name) {
    return this.entries.get(name) ?? { decision: "", comment: "", time: "" };
  }

  set(name, changes) {
    this.read(); // what another window of this page has decided
    const entry = { ...this.get(name), ...changes, time: new Date().toISOString(), result: this.results.get(name) };
    if (entry.decision || entry.comment) this.entries.set(name, entry);
    else this.entries.delete(name);
    this.write();
  }

  setView(changes) {
    this.read(); // or else the decisions of another window would be lost
    Object.assign(this.view, changes);
    this.write(false);
  }

  read() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) ?? "{}");
      if (!this.isKept) return;
      this.entries = new Map(Object.entries(kept.decisions ?? {}));
      this.view = kept.view ?? {};
    } catch {
      this.isKept = false;
    }
  }

  write(changed = true) {
    this.unsaved ||= changed;
    try {
      localStorage.setItem(this.key, JSON.stringify({ decisions: Object.fromEntries(this.entries), view: this.view }));
    } catch { // forbidden, or full
      this.isKept = false;
    }
  }

  /** Takes over loaded decisions on these images, unless there is a later one here; returns how many. */
  merge(loaded, names) {
    this.read();
    let count = 0;
    for (const { image, decision, comment, time } of loaded) {
      if (!names.has(image) || this.get(image).time > time) continue;
      this.entries.set(image, { decision, comment, time, result: this.results.get(image) });
      count += 1;
    }
    this.write();
    return count;
  }

  toJson() {
    const decisions = [...this.entries].map(([image, { decision, comment, time }]) => ({ image, decision, comment, time }));
    return JSON.stringify({ run: this.fingerprint, decisions }, null, 1) + "\n";
  }

  toCsv() {
    const rows = [...this.entries].map(([image, entry]) => [image, entry.decision, entry.comment, entry.time, this.fingerprint]);
    return [COLUMNS, ...rows].map(row => row.map(csvCell).join(",") + "\r\n").join("");
  }
}

/** A cell of a CSV file; what a spreadsheet would compute is marked as text by an apostrophe. */
function csvCell(text) {
  const harmless = /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

/** The rows of a CSV text, as objects by the names of the first row. */
function parseCsv(text) {
  const rows = [[]];
  const pattern = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
  text = text.replace(/^\ufeff/, "");
  while (pattern.lastIndex < text.length) {
    const match = pattern.exec(text);
    if (!match) throw new Error("not a CSV file");
    const cell = match[1] !== undefined ? match[1].replaceAll('""', '"') : match[2];
    rows.at(-1).push(/^'+[=+\-@\t\r]/.test(cell) ? cell.slice(1) : cell);
    if (match[3] !== ",") rows.push([]);
    else if (pattern.lastIndex === text.length) rows.at(-1).push("");
  }
  const [names = [], ...others] = rows.filter(row => row.some(Boolean)); // without blank lines
  if (!names.includes("image") || !names.includes("decision")) throw new Error("not a file of decisions");
  return others.map(row => Object.fromEntries(names.map((name, i) => [name, row[i] ?? ""])));
}

/** The decisions in a saved file, and the run that they are of; throws if it is another file. */
function parseDecisions(text) {
  const isJson = text.trimStart().startsWith("{");
  const content = isJson ? JSON.parse(text) : { decisions: parseCsv(text) };
  const decisions = content.decisions.map(({ image, decision, comment, time }) => {
    if (typeof image !== "string" || !image || (decision && !(Object.hasOwn(DECISIONS, decision)))) throw new Error("not a file of decisions");
    return { image, decision: decision || "", comment: String(comment ?? ""), time: String(time ?? "") };
  });
  return { decisions, run: isJson ? content.run : (content.decisions[0]?.run ?? "") };
}

/** Offers a text as a file to save. */
function saveFile(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
