// What a person does: open an image, decide, undo, save and load.

let sequence = []; // the images through which previous and next go
let commented = ""; // the image of the comment
let undoable = null;
let toastTimer;

function describeScores(index) {
  const image = data.images[index];
  const methods = data.methods.map((_, m) => m).filter(m => image.scores[m]);
  const rows = data.scores.filter(score => methods.some(m => scoreOf(image, score.name, m) != null)).map(score => {
    const row = document.createElement("tr");
    row.append(make("th", "", withUnit(score)), ...methods.map(m => make("td", "", formatScore(scoreOf(image, score.name, m), score.unit))));
    row.firstChild.scope = "row";
    return row;
  });
  const body = document.createElement("tbody");
  body.append(...rows);
  if (data.methods.length < 2) return [body];
  const head = document.createElement("thead");
  const titles = document.createElement("tr");
  titles.append(make("th", ""), ...methods.map(m => make("th", "", data.methods[m].title)));
  head.append(titles);
  return [head, body];
}

function showImage(index) {
  const { name } = data.images[index];
  if (!sequence.includes(index)) sequence = listedOrder();
  if (!sequence.includes(index)) sequence = [...ordered];
  const position = sequence.indexOf(index);
  ui.imageName.textContent = name;
  ui.imageName.title = name;
  ui.position.textContent = `${position + 1} of ${sequence.length}`;
  ui.previous.disabled = position === 0;
  ui.next.disabled = position === sequence.length - 1;
  showDecision(name);
  viewer.open(index);
  const following = sequence[position + 1];
  if (following !== undefined) {
    loadMaps(data, following).catch(() => {});
    new Image().src = pictureOf(data, following, "photo.jpg");
  }
}

/** The images of the list, in its order. */
function listedOrder() {
  order();
  return ordered.slice(0, cutCount()).filter(isShown);
}

function showDecision(name) {
  const { decision, comment } = store.get(name);
  for (const button of document.querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", button.dataset.decision === decision);
  const isWriting = document.hasFocus() && document.activeElement === ui.comment && commented === name;
  if (!isWriting) ui.comment.value = comment;
  commented = name;
  showProgress();
}

/** The index of the image that the address says, by its number from 1; -1 for none. */
function openIndex() {
  const index = Number(location.hash.match(/^#(\d+)$/)?.[1] ?? 0) - 1;
  return data.images[index] ? index : -1;
}

/** Shows what the address says: an image, by its number, or the list. */
function route() {
  const index = openIndex();
  const before = viewer.index;
  ui.listView.hidden = index >= 0;
  ui.imageView.hidden = index < 0;
  document.title = index >= 0 ? `${data.images[index].name} – Review` : `Review: ${data.images.length} image${data.images.length === 1 ? "" : "s"}`;
  document.documentElement.style.setProperty("--top-height", `${document.querySelector(".top").offsetHeight}px`);
  if (index >= 0) {
    showImage(index);
    if (before < 0) ui.imageName.focus();
    if (innerWidth <= 760) window.scrollTo(0, 0);
  } else {
    viewer.index = -1;
    sequence = [];
    showList();
    if (before >= 0) list.focus(before);
  }
}

function go(index) {
  location.hash = `#${index + 1}`;
}

function step(by) {
  const index = sequence[sequence.indexOf(openIndex()) + by];
  if (index !== undefined) go(index);
}

/** Decides on an image, or takes the same decision back; the next undecided one follows. */
function decide(index, decision) {
  const { name } = data.images[index];
  const before = store.get(name);
  const isTakenBack = before.decision === decision;
  undoable = { index, decision: before.decision, made: isTakenBack ? "" : decision };
  store.set(name, { decision: undoable.made });
  toast(`${name}: ${isTakenBack ? "undecided" : DECISIONS[decision]}`, true);
  showStoreState();
  if (openIndex() < 0) {
    showList();
    return;
  }
  showDecision(name);
  if (isTakenBack) return;
  const position = sequence.indexOf(index);
  const isOpen = other => !store.get(data.images[other].name).decision;
  const next = [...sequence.slice(position + 1), ...sequence.slice(0, position)].find(isOpen);
  if (next !== undefined) {
    go(next);
    if (document.activeElement.dataset.decision) ui.imageName.focus(); // a framed button would look like a decision
  } else {
    const isAll = !ordered.slice(0, cutCount()).some(isOpen);
    const words = isAll ? `All ${sequence.length} images are decided: save the decisions above.` : "All images of this selection are decided.";
    location.hash = "";
    toast(`${name}: ${DECISIONS[decision]}. ${words}`, true, 60);
  }
}

function undo() {
  if (!undoable) return;
  const { index, decision, made } = undoable;
  const { name } = data.images[index];
  undoable = null;
  store.read();
  if (store.get(name).decision !== made) { // in another window, or by a file
    toast(`${name} has been decided anew meanwhile: nothing is undone.`);
    refresh();
    return;
  }
  store.set(name, { decision });
  ui.toast.hidden = true;
  if (openIndex() >= 0) {
    if (openIndex() !== index) go(index);
    else showDecision(name);
  } else {
    showList();
  }
}

// -- messages, files

function toast(text, canUndo = false, seconds = 6) {
  ui.toast.firstElementChild.textContent = text;
  ui.undo.hidden = !canUndo;
  ui.toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { ui.toast.hidden = true; }, 1000 * seconds);
}

function showStoreState() {
  ui.notice.hidden = store.isKept;
  ui.notice.textContent = "This browser does not keep the decisions of this page: save them to a file before you close it.";
}

function save(kind) {
  const text = kind === "csv" ? store.toCsv() : store.toJson();
  saveFile(`review-${data.fingerprint}.${kind}`, kind === "csv" ? "text/csv" : "application/json", text);
  store.unsaved = false;
  toast(`${store.entries.size} decision${store.entries.size === 1 ? "" : "s"} saved to the downloads folder.`);
}

async function load(file) {
  try {
    const { decisions, run } = parseDecisions(await file.text());
    const fitting = decisions.filter(({ image }) => names.has(image)).length;
    const isOther = run !== data.fingerprint && decisions.length > 0;
    if (isOther && !(await ask(`These decisions were made on other results. ${fitting} of ${decisions.length} are on images of this page. Load them all the same?`))) return;
    const count = store.merge(decisions, names);
    toast(`${count} of ${decisions.length} decisions loaded${count < fitting ? "; the others here are newer" : ""}.`);
  } catch {
    toast(`${file.name} is not a file of decisions that this page has saved.`);
  }
  showStoreState();
  refresh();
}

function ask(text) {
  ui.askText.textContent = text;
  ui.ask.returnValue = "no";
  ui.ask.showModal();
  return new Promise(resolve => ui.ask.addEventListener("close", () => resolve(ui.ask.returnValue === "yes"), { once: true }));
}

function refresh() {
  if (openIndex() >= 0) showDecision(data.images[openIndex()].name);
  else showList();
}
