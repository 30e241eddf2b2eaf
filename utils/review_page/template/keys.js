// Mouse and keyboard, and the start.

function listen() {
  const refill = (element, type, change) => element.addEventListener(type, () => { change(element.value); keepView(); showList(); });
  refill(ui.cut, "input", value => { view.cut = Number(value); });
  refill(ui.method, "change", value => { view.method = Number(value); viewer.setMethod(view.method); sortByKnownScore(); });
  refill(ui.shown, "change", value => { view.shown = value; });
  refill(ui.search, "input", value => { view.search = value; });
  ui.sort.addEventListener("change", () => sortBy(ui.sort.value));
  ui.direction.addEventListener("click", () => sortBy(view.sort));
  ui.start.addEventListener("click", () => {
    const inOrder = [...listedOrder(), ...ordered.slice(0, cutCount())]; // of the list, and then what it does not show
    const index = inOrder.find(one => !store.get(data.images[one].name).decision);
    if (index !== undefined) go(index);
  });
  ui.back.addEventListener("click", () => { location.hash = ""; });
  ui.previous.addEventListener("click", () => step(-1));
  ui.next.addEventListener("click", () => step(1));
  ui.undo.addEventListener("click", undo);
  for (const button of document.querySelectorAll("[data-decision]")) button.addEventListener("click", () => decide(openIndex(), button.dataset.decision));
  ui.comment.addEventListener("input", () => {
    store.set(commented, { comment: ui.comment.value });
    showStoreState();
  });
  for (const [button, factor] of [[ui.zoomIn, 1.5], [ui.zoomOut, 1 / 1.5], [ui.zoomFit, 0]]) button.addEventListener("click", () => zoom(factor));
  ui.saveCsv.addEventListener("click", () => save("csv"));
  ui.saveJson.addEventListener("click", () => save("json"));
  ui.load.addEventListener("click", () => ui.loadFile.click());
  ui.loadFile.addEventListener("change", async () => {
    if (ui.loadFile.files.length) await load(ui.loadFile.files[0]);
    ui.loadFile.value = "";
  });
  ui.helpButton.addEventListener("click", () => ui.help.showModal());
  window.addEventListener("hashchange", route);
  window.addEventListener("storage", event => {
    if (event.key !== store.key) return;
    store.read();
    refresh();
  });
  window.addEventListener("beforeunload", event => { if (!store.isKept && store.unsaved) event.preventDefault(); });
  for (const type of ["beforeprint", "afterprint"]) window.addEventListener(type, () => { list.isPrinting = type === "beforeprint"; list.show(list.order); });
  document.addEventListener("keydown", onKey);
}

/** Zooms by a factor; 0 shows the whole image. */
function zoom(factor) {
  if (factor) zoomCamera(factor);
  else moveCamera(0, 0, 1);
  viewer.drawPanes();
}

/** Moves a slider that is shown by some of its steps, unless it is at its end. */
function slide(slider, steps) {
  if (!slider.offsetParent) return;
  const before = slider.value;
  slider.value = Number(before) + steps * Number(slider.step || 1);
  if (slider.value !== before) slider.dispatchEvent(new Event("input"));
}

function pan(x, y) {
  const step = 0.1 / camera.zoom;
  moveCamera(camera.x + x * step * camera.width, camera.y + y * step * camera.height);
  viewer.drawPanes();
}

const ANYWHERE = { "?": () => ui.help.showModal(), z: undo };
const DECIDING = { a: "accept", c: "correct", r: "reject" };
const ON_IMAGE = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), Escape: () => { location.hash = ""; },
  n: () => ui.comment.focus(), l: () => viewer.nextLayer(), "[": () => slide(ui.opacity, -10), "]": () => slide(ui.opacity, 10),
  ",": () => slide(ui.threshold, -1), ".": () => slide(ui.threshold, 1), p: () => ui.showPrediction.click(),
  g: () => ui.showTruth.click(), o: () => ui.showRegions.click(), m: () => nextMethod(), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
};
const PANNING = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function nextMethod() {
  const available = data.methods.map((_, m) => m).filter(m => data.images[viewer.index].scores[m]);
  viewer.setMethod(available[(available.indexOf(viewer.method) + 1) % available.length]);
}

/** What a key does here, if anything. */
function actionOf(key, { shiftKey, target }) {
  const isOpen = openIndex() >= 0;
  const index = isOpen ? openIndex() : list.focused();
  if (isOpen && shiftKey && PANNING[key]) return () => pan(...PANNING[key]);
  if (DECIDING[key] && index !== undefined) return () => decide(index, DECIDING[key]);
  if (isOpen && ON_IMAGE[key]) return ON_IMAGE[key];
  if (!isOpen && key === "ArrowDown" && list.order.length && target === document.body) return () => list.focus(list.order[0]);
  return ANYWHERE[key];
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  const isText = target.matches("textarea, select, input[type=search]");
  if (isText) {
    if (event.key === "Escape" && target === ui.comment) ui.imageName.focus();
    return;
  }
  if (target.matches("input[type=range], input[type=radio]") && event.key.startsWith("Arrow")) return; // theirs
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat && (DECIDING[key] || key === "z")) return; // of a key that is held
  const action = actionOf(key, event);
  if (!action) return;
  event.preventDefault();
  action();
}

function start() {
  ui.methodTitle.title = ui.methodTitle.textContent = data.methods.map(method => method.title).join(" · ");
  ui.method.append(...data.methods.map((method, m) => new Option(method.title, m)));
  ui.methodLabel.hidden = data.methods.length < 2;
  ui.sort.append(...data.scores.map(score => new Option(withUnit(score) + (score.measured ? ", measured" : ""), score.name)));
  ui.shown.value = view.shown;
  ui.search.value = view.search;
  const truth = data.scores.some(score => score.measured);
  const keys = data.classes > 2 ? data.colours.classes.slice(0, 4).map((colour, i) => colourKey(colour, `class ${i + 1}`))
    : [colourKey(data.colours.prediction, "prediction"), ...(truth ? [colourKey(data.colours.truth, "ground truth")] : [])];
  ui.listLegend.append(...keys);
  if (data.missing.length) {
    ui.missing.hidden = false;
    const count = data.missing.length;
    ui.missing.firstElementChild.textContent = `${count} image${count === 1 ? " is" : "s are"} not on this page`;
    ui.missing.lastElementChild.append(...data.missing.slice(0, 1000).map(([name, reason]) => make("li", "", `${name}: ${reason}`)));
  }
  viewer.setMethod(view.method);
  listen();
  showStoreState();
  route();
}

start();
