// The page: what is chosen, and the list that follows from it.

const data = JSON.parse(document.getElementById("data").textContent);
const store = new DecisionStore(data.fingerprint, new Map(data.images.map(image => [image.name, image.result])));
/** The elements of the page by their ids, in camel case. */
const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map(element => [element.id.replace(/-(\w)/g, (_, letter) => letter.toUpperCase()), element]));
const names = new Set(data.images.map(image => image.name));
const scoreNames = data.scores.map(score => score.name);
const PREFERRED = ["soft_dice_confidence", "pairwise_dice", "mean_entropy", "area_variation", "area", "dice"];

/** What the list shows; kept with the decisions. */
const view = { method: 0, sort: "soft_dice_confidence", descending: false, cut: data.images.length, shown: "all", search: "" };
for (const [key, value] of Object.entries(store.view)) if (typeof view[key] === typeof value) view[key] = value;
view.method = Math.min(view.method, data.methods.length - 1);

let ordered = []; // all images in the chosen order

const scoreOf = (image, name, method = view.method) => image.scores[method]?.[scoreNames.indexOf(name)] ?? null;
const list = new ImageList(ui.list, describeRow);
const viewer = new Viewer(data, ui, describeScores);
sortByKnownScore();

/** Sorts by another score if the method has none by which the list is sorted. */
function sortByKnownScore() {
  const isKnown = name => data.images.some(image => scoreOf(image, name) != null);
  if (isKnown(view.sort)) return;
  const score = data.scores.find(one => isKnown(one.name)) ?? data.scores[0];
  view.sort = score.name;
  view.descending = score.sign < 0;
}

function order() {
  ordered = sortedByScore(data.images, image => scoreOf(image, view.sort), view.descending);
}

/** How many of the ordered images are to be reviewed. */
function cutCount() {
  return includingTies(ordered, Math.min(view.cut, ordered.length), index => scoreOf(data.images[index], view.sort));
}

function isShown(index) {
  const { name } = data.images[index];
  const { decision } = store.get(name);
  if (view.search && !name.toLowerCase().includes(view.search.toLowerCase())) return false;
  return view.shown === "all" || (view.shown === "undecided" ? !decision : decision === view.shown);
}

function columns() {
  const present = PREFERRED.filter(name => scoreNames.includes(name) && data.images.some(image => scoreOf(image, name) != null));
  const others = present.filter(name => name !== view.sort && name !== "dice");
  const dice = present.includes("dice") && view.sort !== "dice" ? ["dice"] : [];
  const most = innerWidth <= 760 ? 2 : innerWidth <= 1000 ? 3 : innerWidth <= 1200 ? 4 : 6;
  return [view.sort, ...others].slice(0, most - dice.length).concat(dice);
}

const largest = new Map(); // of the scores without an upper bound, by method and name
function partOf(score, value) {
  if (score.bounded) return value;
  const key = `${view.method} ${score.name}`;
  if (!largest.has(key)) largest.set(key, data.images.reduce((most, image) => Math.max(most, scoreOf(image, score.name) ?? 0), 1e-12));
  return value / largest.get(key);
}

function describeRow(index) {
  const image = data.images[index];
  const bars = columns().map(name => {
    const score = data.scores.find(one => one.name === name);
    const value = scoreOf(image, name);
    return { title: capitalised(score), text: formatScore(value, score.unit), part: value == null ? 0 : partOf(score, value), measured: score.measured };
  });
  const method = image.scores[view.method] ? view.method : -1;
  const isEmpty = scoreOf(image, "area") === 0;
  return { name: image.name, isEmpty, picture: method < 0 ? null : pictureOf(data, index, `${method}.jpg`), bars, ...store.get(image.name) };
}

function capitalised({ title }) {
  return title[0].toUpperCase() + title.slice(1);
}

function withUnit(score) {
  return score.unit ? `${capitalised(score)} (${score.unit})` : capitalised(score);
}

function showList() {
  order();
  const count = cutCount();
  const shown = ordered.slice(0, count).filter(isShown);
  showCut(count);
  document.documentElement.style.setProperty("--score-columns", `repeat(${columns().length}, minmax(70px, 1fr))`);
  showColumns();
  list.show(shown);
  ui.empty.hidden = shown.length > 0;
  ui.empty.textContent = count === 0 ? "No image is to be reviewed. Move the slider to the right." : "None of these images matches.";
  ui.sort.value = view.sort;
  ui.method.value = view.method;
  const score = data.scores.find(one => one.name === view.sort);
  const isUncertainFirst = view.descending === (score.sign < 0);
  let words = isUncertainFirst ? (score.measured ? "worst first" : "least certain first") : (score.measured ? "best first" : "most certain first");
  if (score.unit === "pixels" || score.name === "largest_probability") words = view.descending ? "largest first" : "smallest first";
  ui.direction.textContent = `${words} ${view.descending ? "↓" : "↑"}`; // the arrow of the column
  showProgress();
}

function showCut(count) {
  const inOrder = name => ordered.map(index => scoreOf(data.images[index], name));
  const areas = inOrder("area");
  const expected = meansOfRest(inOrder("soft_dice_confidence").map((value, i) => areas[i] === 0 ? null : value)); // of an empty mask it estimates no Dice
  const [dice, sensitivity] = [inOrder("dice"), inOrder("sensitivity")];
  const measured = meansOfRest(dice.map((value, i) => sensitivity[i] == null ? null : value)); // where there is a lesion
  const total = ordered.length;
  ui.cut.max = total;
  ui.cut.value = Math.min(view.cut, total);
  ui.cut.setAttribute("aria-valuetext", `${count} of ${total} images`);
  const score = data.scores.find(one => one.name === view.sort);
  const last = count ? formatScore(scoreOf(data.images[ordered[count - 1]], view.sort), score.unit) : "";
  const isUnknown = count > 0 && scoreOf(data.images[ordered[count - 1]], view.sort) == null;
  const orNone = count > 0 && scoreOf(data.images[ordered[0]], view.sort) == null ? ", or that have none" : "";
  const limit = `whose ${score.title} is at ${view.descending ? "least" : "most"} ${last}${orNone}`;
  ui.cutLabel.textContent = count ? `Review images ${isUnknown ? `without ${score.title}` : limit}` : "Review none";
  ui.cutCount.textContent = `${count} of ${total} image${total === 1 ? "" : "s"} to review`;
  const k = count < total ? count : 0;
  const which = count < total ? `the ${count ? `other ${total - count}` : `${total}`}` : "all";
  const someEmpty = areas.some((area, i) => i >= k && area === 0);
  const parts = [`Expected Dice of ${which}${someEmpty ? ", where the mask is not empty" : ""}: `, make("b", "", formatScore(expected[k]))];
  const ofLesions = measured[k] != null && dice.some((value, i) => i >= k && value != null && sensitivity[i] == null);
  if (measured[k] != null) parts.push(ofLesions ? " · measured where there is a lesion: " : " · measured: ", make("b", "", formatScore(measured[k])));
  if (count === total && total > 1) parts.push(" · move the slider to leave out the images of which the network is sure");
  ui.cutDice.replaceChildren(...parts);
  const curves = [{ means: expected, name: "expected" }];
  ui.measuredKey.hidden = measured[0] == null;
  if (measured[0] != null) curves.push({ means: measured, name: "measured" });
  [ui.curveLow.textContent, ui.curveHigh.textContent] = drawCurves(ui.curve, curves, count).map(value => value?.toFixed(2) ?? "");
  ui.curveEnd.textContent = total;
}

function showColumns() {
  const buttons = columns().map(name => {
    const score = data.scores.find(one => one.name === name);
    const button = make("button", name === view.sort ? "sorted" : "", withUnit(score) + (score.measured ? ", measured" : "") + (name === view.sort ? (view.descending ? " ↓" : " ↑") : ""));
    button.type = "button";
    button.setAttribute("aria-pressed", name === view.sort);
    button.addEventListener("click", () => sortBy(name));
    return button;
  });
  const legend = ui.listLegend.cloneNode(true);
  legend.removeAttribute("id");
  ui.columns.replaceChildren(legend, ...buttons);
}

/** Sorts by a score, the least certain or the worst first; by the same one again in the other direction. */
function sortBy(name) {
  const score = data.scores.find(one => one.name === name);
  view.descending = view.sort === name ? !view.descending : score.sign < 0;
  view.sort = name;
  keepView();
  window.scrollTo(0, 0);
  showList();
}

function keepView() {
  store.setView({ ...view });
  showStoreState();
}

function showProgress() {
  const under = ordered.slice(0, cutCount()).map(index => store.get(data.images[index].name).decision);
  const decided = under.filter(Boolean).length;
  const counts = Object.entries(DECISIONS).map(([key, text]) => [under.filter(one => one === key).length, text]).filter(([count]) => count);
  ui.progressBar.max = Math.max(1, under.length);
  ui.progressBar.value = decided;
  ui.start.disabled = decided === under.length;
  ui.start.textContent = decided === under.length && decided ? "All are decided" : decided ? "Continue the review" : "Start the review";
  ui.progressText.textContent = [`${under.length - decided} left`, ...counts.map(([count, text]) => `${count} ${text}`)].join(" · ");
}
