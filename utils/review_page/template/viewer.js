// One image, large: photograph, layers, contours, methods side by side.

const LAYER_TITLES = {
  probability: "Probability", entropy: "Entropy", expected_entropy: "Expected entropy",
  mutual_information: "Mutual information", std: "Standard deviation", errors: "Errors", difference: "Difference",
};

const REGIONS = ["outer", "inner"]; // the masks with a guarantee

const isLayer = name => name.split("_c")[0] in LAYER_TITLES;

/** What the outer and the inner mask promise. */
function describeGuarantee(guarantee) {
  const images = guarantee.groups ? `groups of images like the ${guarantee.groups}` : `images like the ${guarantee.images}`;
  const scope = `on average over ${images} of the calibration, not for each image, and not for images of other sources`;
  const percent = `${Number((100 * guarantee.level).toFixed(1))} %`;
  return `At least ${percent} of the lesion lie in the outer mask, and at least ${percent} of the inner mask are lesion: ${scope}.`;
}

class Viewer {
  constructor(data, elements, describeScores) {
    this.data = data;
    this.elements = elements;
    this.describeScores = describeScores;
    this.index = -1;
    this.chosen = 0; // the method, where an image has a result of it
    this.method = 0;
    this.beside = -1; // none
    this.layer = "";
    this.threshold = null; // that of each method
    this.maps = null;
    this.panes = [0, 1].map(p => new Pane(() => this.drawPanes(), (x, y) => this.read(x, y, p)));
    elements.panes.append(this.panes[0].element);
    this.makeSelects();
    const redraw = () => this.draw();
    elements.threshold.addEventListener("input", () => { this.threshold = Number(elements.threshold.value); });
    for (const control of ["opacity", "threshold", "showPrediction", "showTruth", "showRegions"]) elements[control].addEventListener("input", redraw);
  }

  makeSelects() {
    const { elements: e, data } = this;
    const options = data.methods.map((method, m) => new Option(method.title, m));
    e.imageMethod.append(...options);
    e.beside.append(new Option("nothing", -1), ...options.map(option => option.cloneNode(true)));
    e.methodSection.hidden = data.methods.length < 2;
    e.imageMethod.addEventListener("change", () => this.setMethod(Number(e.imageMethod.value)));
    e.beside.addEventListener("change", () => { this.beside = Number(e.beside.value); this.refresh(); });
    for (const name of REGIONS) e[`${name}Key`].style.background = data.colours[name];
    if (data.classes === 2) {
      e.predictionKey.style.background = data.colours.prediction;
      e.truthKey.style.background = data.colours.truth;
    } else { // a colour for each class
      e.predictionKey.classList.add("solid");
      e.truthKey.classList.add("dashed");
    }
    e.errorsLegend.append(colourKey(data.colours.falseNegative, "missed (false negative)", "key area"), colourKey(data.colours.falsePositive, "too much (false positive)", "key area"));
  }

  setMethod(method) {
    this.chosen = this.method = method;
    this.resetThreshold();
    this.refresh();
  }

  /** Each method has its own threshold until the slider is moved, which shows it as well as its steps and ends allow. */
  resetThreshold() {
    this.threshold = null;
    this.elements.threshold.value = this.data.methods[this.method].threshold;
  }

  thresholdOf(method) {
    return this.threshold ?? this.data.methods[method].threshold;
  }

  /** Shows an image; what was written is shown first, whatever the threshold of the image before. */
  async open(index) {
    this.index = index;
    this.maps = null;
    this.photo = null;
    this.elements.contourText.textContent = "";
    const image = this.data.images[index];
    this.method = image.scores[this.chosen] ? this.chosen : image.scores.findIndex(Boolean);
    this.resetThreshold();
    const scale = Math.min(1, 512 / Math.max(...image.size));
    resetCamera(image.size[0] * scale, image.size[1] * scale);
    this.refresh();
    const photo = new Image();
    photo.src = pictureOf(this.data, index, "photo.jpg");
    photo.decode().then(() => photo, () => null).then(loaded => {
      if (this.index !== index) return;
      this.photo = loaded;
      this.draw();
    });
    try {
      const maps = await loadMaps(this.data, index);
      if (this.index !== index) return;
      this.maps = maps;
      resetCamera(maps.width, maps.height);
      this.refresh();
    } catch {
      if (this.index === index) this.elements.contourText.textContent = "The maps of this image cannot be read: is the folder of pictures beside this page?";
    }
  }

  /** The maps of a method, with the entropy that follows from a probability. */
  mapsOf(method) {
    const maps = this.maps?.runs[method] ?? {};
    if (!maps.entropy && maps.probability_c1 && this.data.classes === 2) maps.entropy = binaryEntropy(maps.probability_c1);
    return maps;
  }

  /**
   * The maps of which the contour is drawn, with their class, and whether the threshold moves it; until then it is that of the mask, if there is one.
   * With several classes the probability of one, above a threshold, is not the predicted class.
   */
  predictionOf(method) {
    const maps = this.mapsOf(method);
    const named = kind => Object.keys(maps).filter(name => name.startsWith(kind)).map(name => ({ k: Number(name.split("_c")[1]), values: maps[name] }));
    const probabilities = named("probability_c"), masks = named("mask_c");
    const isLive = probabilities.length === 1;
    const regions = isLive && (this.threshold != null || !masks.length) ? probabilities : masks;
    const ofProbability = regions === probabilities;
    return { isLive, level: 255 * (ofProbability ? this.thresholdOf(method) : 0.5), regions, isPrediction: !ofProbability || this.data.classes === 2 };
  }

  layerNames() {
    const order = Object.keys(LAYER_TITLES);
    const names = Object.keys(this.mapsOf(this.method)).filter(isLayer);
    if (this.maps?.truth.length && this.predictionOf(this.method).isPrediction) names.push("errors");
    if (this.canDiffer()) names.push("difference");
    return names.sort((a, b) => order.indexOf(a.split("_c")[0]) - order.indexOf(b.split("_c")[0]));
  }

  canDiffer() {
    return this.beside >= 0 && this.beside !== this.method && this.mapsOf(this.method).probability_c1 && this.mapsOf(this.beside).probability_c1;
  }

  layerTitle(name) {
    const [kind, k] = name.split("_c");
    return k && this.data.classes > 2 ? `${LAYER_TITLES[kind]}, class ${k}` : LAYER_TITLES[kind];
  }

  /** Updates everything that depends on the image and the methods, and draws. */
  refresh() {
    const { elements: e, data } = this;
    const image = data.images[this.index];
    if (!image) return;
    e.imageMethod.value = this.method;
    e.beside.value = this.beside;
    [...e.imageMethod.options].forEach((option, m) => { option.disabled = !image.scores[m]; });
    const names = this.layerNames();
    const chosen = names.includes(this.layer) ? this.layer : "";
    e.layers.replaceChildren(...["", ...names].map(name => this.makeLayerChoice(name, name === chosen)));
    e.layerSection.hidden = names.length === 0;
    const { isLive } = this.predictionOf(this.method);
    e.thresholdLabel.hidden = e.thresholdNote.hidden = !isLive;
    e.masksOnly.hidden = !this.maps || Object.keys(this.mapsOf(this.method)).some(isLayer);
    e.truthLabel.hidden = !this.maps?.truth.length;
    const { guarantee } = data.methods[this.method];
    e.regionsLabel.hidden = e.regionsNote.hidden = !guarantee;
    if (guarantee) e.regionsNote.textContent = describeGuarantee(guarantee);
    const methods = this.besideShown() ? [this.method, this.beside] : [this.method];
    e.scoreTable.replaceChildren(...this.describeScores(this.index));
    e.panes.replaceChildren(...methods.map((_, p) => this.panes[p].element));
    methods.forEach((method, p) => {
      this.panes[p].caption.textContent = data.methods[method].title;
      this.panes[p].caption.hidden = data.methods.length < 2;
      this.panes[p].canvas.setAttribute("aria-label", `${image.name}, ${data.methods[method].title}`);
    });
    this.draw();
  }

  besideShown() {
    return this.beside >= 0 && this.beside !== this.method && this.data.images[this.index].scores[this.beside];
  }

  makeLayerChoice(name, checked) {
    const label = make("label", "");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "layer", value: name, checked });
    input.addEventListener("change", () => { this.layer = name; this.draw(); });
    label.append(input, name ? this.layerTitle(name) : "None");
    return label;
  }

  /** Chooses the layer after the present one. */
  nextLayer() {
    const choices = [...this.elements.layers.querySelectorAll("input")];
    const current = choices.findIndex(choice => choice.checked);
    const next = choices[(current + 1) % choices.length];
    next.checked = true;
    this.layer = next.value;
    this.draw();
  }

  draw() {
    const { elements: e, maps } = this;
    const layer = maps && this.layerNames().includes(this.layer) ? this.layer : "";
    e.opacityValue.textContent = `${e.opacity.value} %`;
    const threshold = this.thresholdOf(this.method);
    e.thresholdValue.textContent = threshold.toFixed(Math.max(2, String(threshold).length - 2));
    this.drawScale(layer);
    const methods = this.besideShown() ? [this.method, this.beside] : [this.method];
    methods.forEach((method, p) => {
      this.panes[p].show({
        photo: this.photo, layer: layer && this.paintLayer(layer, method), opacity: e.opacity.value / 100, contours: maps ? this.contours(method) : [],
      });
    });
    if (maps) this.describeContour();
  }

  drawPanes() {
    for (const pane of this.panes) if (pane.element.isConnected) pane.draw();
  }

  paintLayer(name, method) {
    const { width, height, truth, ignored } = this.maps;
    if (name === "errors") {
      const { regions, level } = this.predictionOf(method);
      const colours = [this.data.colours.falseNegative, this.data.colours.falsePositive].map(colour => [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16)));
      return paintedMap(width, height, (pixels, i) => {
        if (ignored && ignored[i] > 127) return;
        const missed = regions.some(({ k, values }) => truth[k - 1][i] > 127 && !(values[i] > level));
        const excess = regions.some(({ k, values }) => values[i] > level && !(truth[k - 1][i] > 127));
        if (missed || excess) pixels.set([...colours[missed ? 0 : 1], 255], 4 * i);
      });
    }
    if (name === "difference") {
      const [a, b] = [this.mapsOf(this.method).probability_c1, this.mapsOf(this.beside).probability_c1];
      return colouredMap(a.map((value, i) => Math.abs(value - b[i])), width, height, TABLES.inferno);
    }
    const values = this.mapsOf(method)[name];
    return values ? colouredMap(values, width, height, name.startsWith("probability") ? TABLES.viridis : TABLES.inferno) : null;
  }

  /** The largest value of a layer's scale, and its unit. */
  scaleOf(name) {
    if (name.startsWith("std")) return [this.data.maxStd, ""];
    return name.startsWith("probability") || name === "difference" ? [1, ""] : [this.data.maxEntropy, "nats"];
  }

  drawScale(name) {
    const { elements: e } = this;
    e.errorsLegend.hidden = name !== "errors";
    e.scale.hidden = !name || name === "errors";
    if (e.scale.hidden) return;
    const [end, unit] = this.scaleOf(name);
    e.scaleEnd.textContent = Number(end.toFixed(3));
    e.scaleUnit.textContent = unit;
    const ramp = colouredMap(Uint8Array.from({ length: 256 }, (_, i) => i), 256, 1, name.startsWith("probability") ? TABLES.viridis : TABLES.inferno);
    e.scaleBar.getContext("2d").drawImage(ramp, 0, 0);
  }

  contours(method) {
    const { elements: e, maps, data } = this;
    const several = data.classes > 2;
    const line = (values, level, colour, dashed, others) => ({ path: pathOf(contourLines(values, maps.width, maps.height, level, others)), colour, dashed });
    const contours = [];
    const { regions, level } = this.predictionOf(method);
    if (e.showTruth.checked) maps.truth.forEach((values, i) => contours.push(line(values, 127.5, several ? data.colours.classes[i] : data.colours.truth, true, maps.truth.slice(0, i)))); // two dashed lines in one place would look solid
    if (e.showRegions.checked) REGIONS.filter(name => this.mapsOf(method)[name]).forEach(name => contours.push(line(this.mapsOf(method)[name], 127.5, data.colours[name], false)));
    if (e.showPrediction.checked) regions.forEach(({ k, values }) => contours.push(line(values, level, several ? data.colours.classes[k - 1] : data.colours.prediction, false)));
    return contours;
  }

  /** Area of the contour and, with a ground truth, its Dice coefficient, at the size of the maps. */
  describeContour() {
    const { regions, level, isPrediction } = this.predictionOf(this.method);
    const { truth, ignored } = this.maps;
    const above = isPrediction ? "" : ` with a probability above ${(level / 255).toFixed(2)}`;
    const parts = regions.map(({ k, values }) => {
      const { fraction, dice } = measure(values, level, truth[k - 1], ignored);
      const of = this.data.classes > 2 ? [colourKey(this.data.colours.classes[k - 1], `Class ${k}${above}: `), "area "] : ["Area "];
      const nodes = [...of, make("b", "", `${(100 * fraction).toFixed(fraction < 0.1 ? 2 : 1)} %`), " of the image"];
      return dice == null || !isPrediction ? nodes : [...nodes, " · Dice ", make("b", "", dice.toFixed(3))];
    });
    const lines = parts.map(nodes => { const line = make("span", ""); line.append(...nodes); return line; });
    this.elements.contourText.replaceChildren(...lines.flatMap((line, i) => i ? [document.createElement("br"), line] : [line]));
  }

  /** Shows the values of the maps at a point of the first or the second pane. */
  read(x, y, pane) {
    const { readout } = this.elements;
    readout.textContent = "";
    if (!this.maps || x === undefined) return;
    const { width, height } = this.maps;
    const [column, row] = [Math.floor(x), Math.floor(y)];
    if (column < 0 || row < 0 || column >= width || row >= height) return;
    const maps = this.mapsOf(pane ? this.beside : this.method);
    const names = this.layerNames().filter(name => maps[name] && (name.startsWith("probability") || name === "entropy" || name === this.layer));
    readout.textContent = names.map(name => {
      const [end, unit] = this.scaleOf(name);
      return `${this.layerTitle(name).toLowerCase()} ${(maps[name][row * width + column] / 255 * end).toFixed(2)} ${unit}`.trim();
    }).join(" · ");
  }
}
