// Maps: greyscale values of an image, their colours, contours and areas.

/** The bytes of a map from deflated base64 text, in which each byte is the difference to the one before. */
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let i = 1; i < values.length; i += 1) values[i] += values[i - 1];
  return values;
}

const waitingForMaps = new Map(); // by the index of the image, what is called with its maps
const loadedMaps = new Map(); // the last few

/** Called by the file of an image's maps. */
function receiveMaps(index, maps) {
  waitingForMaps.get(index)?.(maps);
}

/** The maps of an image, with arrays of bytes in place of texts; from a file beside the page, or embedded in it. */
function loadMaps(data, index) {
  if (!loadedMaps.has(index)) {
    const packed = data.embedded ? Promise.resolve(data.embedded[index].maps) : loadMapFile(data, index);
    loadedMaps.set(index, packed.then(inflateAll));
    if (loadedMaps.size > 8) loadedMaps.delete(loadedMaps.keys().next().value);
  }
  return loadedMaps.get(index);
}

function loadMapFile(data, index) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waitingForMaps.set(index, resolve);
    script.onload = () => { waitingForMaps.delete(index); script.remove(); };
    script.onerror = () => { loadedMaps.delete(index); script.remove(); reject(new Error("missing")); };
    script.src = pictureOf(data, index, "maps.js");
    document.head.append(script);
  });
}

async function inflateAll({ width, height, runs, truth, ignored }) {
  const inflateEach = async run => Object.fromEntries(await Promise.all(Object.entries(run).map(async ([name, text]) => [name, await inflate(text)])));
  return {
    width, height,
    runs: await Promise.all(runs.map(inflateEach)),
    truth: await Promise.all(truth.map(inflate)),
    ignored: ignored && await inflate(ignored),
  };
}

/** The address of a picture beside the page or in it. */
function pictureOf(data, index, end) {
  if (!data.embedded) return `${data.folder.split("/").map(encodeURIComponent).join("/")}/${String(index).padStart(5, "0")}_${end}`;
  return end === "photo.jpg" ? data.embedded[index].photo : data.embedded[index].small[parseInt(end, 10)];
}

// -- colours: viridis for probability, inferno for the rest, as in the figures of the scripts

const VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"];
const INFERNO = ["000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4"];

/** The 256 colours, as RGBA bytes, between equally spaced ones. */
function colourTable(hexadecimal) {
  const anchors = hexadecimal.map(text => [0, 2, 4].map(i => parseInt(text.slice(i, i + 2), 16)));
  const table = new Uint8ClampedArray(4 * 256);
  for (let value = 0; value < 256; value += 1) {
    const position = value / 255 * (anchors.length - 1);
    const i = Math.min(Math.floor(position), anchors.length - 2);
    for (let c = 0; c < 3; c += 1) table[4 * value + c] = anchors[i][c] + (position - i) * (anchors[i + 1][c] - anchors[i][c]);
    table[4 * value + 3] = 255;
  }
  return table;
}

const TABLES = { viridis: colourTable(VIRIDIS), inferno: colourTable(INFERNO) };

/** A canvas on which each byte of a map has its colour. */
function colouredMap(values, width, height, table) {
  return paintedMap(width, height, (pixels, i) => { pixels.set(table.subarray(4 * values[i], 4 * values[i] + 4), 4 * i); });
}

/** A canvas whose pixels a function sets, given the RGBA bytes and the pixel's number. */
function paintedMap(width, height, paint) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let i = 0; i < width * height; i += 1) paint(picture.data, i);
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** The entropy of a probability of one of two classes, as a map in which 255 is ln 2 nats. */
function binaryEntropy(probability) {
  const table = Uint8Array.from({ length: 256 }, (_, value) => {
    const p = value / 255;
    return p === 0 || p === 1 ? 0 : Math.round(-255 * (p * Math.log2(p) + (1 - p) * Math.log2(1 - p)));
  });
  return probability.map(value => table[value]);
}

// -- contours

// By the corners of a cell that are above the level (top left 8, top right 4, bottom right 2, bottom left 1), the sides,
// 0 top, 1 right, 2 bottom, 3 left, from which a contour enters and to which it leaves, with the region on its right.
const CELLS = [[], [3, 2], [2, 1], [3, 1], [1, 0], [1, 0, 3, 2], [2, 0], [3, 0], [0, 3], [0, 2], [0, 3, 2, 1], [0, 1], [1, 3], [1, 2], [2, 3], []];

/**
 * The contours of a map at a level, by marching squares (Lorensen and Cline 1987): lines [x0, y0, x1, y1, …] in pixels.
 *
 * Where the contour of one of the other maps is in the same cell it is left out, and the lines are open.
 */
function contourLines(values, width, height, level, others = []) {
  const w = width + 2, h = height + 2; // with a rim of zeros, so that every whole line is closed
  const pad = map => {
    const padded = new Uint8Array(w * h);
    for (let y = 0; y < height; y += 1) padded.set(map.subarray(y * width, (y + 1) * width), (y + 1) * w + 1);
    return padded;
  };
  const cornersOf = (padded, i) => (padded[i] > level) << 3 | (padded[i + 1] > level) << 2 | (padded[i + w + 1] > level) << 1 | (padded[i + w] > level);
  const padded = pad(values), paddedOthers = others.map(pad);
  const isShared = i => paddedOthers.some(other => cornersOf(other, i) % 15);
  const next = new Int32Array(2 * w * h).fill(-1); // by side: 2 i to the right of pixel i, 2 i + 1 below it
  const starts = [];
  for (let y = 0; y < h - 1; y += 1) {
    for (let x = 0; x < w - 1; x += 1) {
      const i = y * w + x;
      const corners = cornersOf(padded, i);
      if (corners % 15 === 0 || isShared(i)) continue;
      const sides = [2 * i, 2 * (i + 1) + 1, 2 * (i + w), 2 * i + 1];
      const cell = CELLS[corners];
      for (let s = 0; s < cell.length; s += 2) {
        next[sides[cell[s]]] = sides[cell[s + 1]];
        starts.push(sides[cell[s]]);
      }
    }
  }
  const pointAt = side => {
    const i = side >> 1, below = side & 1, j = below ? i + w : i + 1;
    const f = (level - padded[i]) / (padded[j] - padded[i]);
    const x = i % w - 0.5 + (below ? 0 : f), y = Math.floor(i / w) - 0.5 + (below ? f : 0);
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  };
  const entered = others.length ? new Set(starts.map(side => next[side])) : null;
  if (entered) starts.sort((a, b) => entered.has(a) - entered.has(b)); // open lines first, from their ends
  const lines = [];
  for (const start of starts) {
    if (next[start] < 0) continue;
    const line = [];
    let side = start;
    while (next[side] >= 0) {
      line.push(...pointAt(side));
      const following = next[side];
      next[side] = -1;
      side = following;
    }
    line.push(...pointAt(side)); // of a closed line the first one again
    lines.push(line);
  }
  return lines;
}

/** Lines as a path. */
function pathOf(lines) {
  const path = new Path2D();
  for (const line of lines) {
    path.moveTo(line[0], line[1]);
    for (let i = 2; i < line.length; i += 2) path.lineTo(line[i], line[i + 1]);
    if (line[0] === line.at(-2) && line[1] === line.at(-1)) path.closePath();
  }
  return path;
}

/** Area, and with a ground truth the Dice coefficient, of the pixels of a map above a level. */
function measure(values, level, truth, ignored) {
  let area = 0, positives = 0, both = 0, predicted = 0, pixels = 0;
  for (let i = 0; i < values.length; i += 1) {
    area += values[i] > level;
    if (!truth || (ignored && ignored[i] > 127)) continue;
    const isTrue = truth[i] > 127, isPredicted = values[i] > level;
    pixels += 1;
    predicted += isPredicted;
    positives += isTrue;
    both += isTrue && isPredicted;
  }
  const dice = !pixels ? null : predicted + positives ? 2 * both / (predicted + positives) : 1;
  return { fraction: area / values.length, dice };
}
