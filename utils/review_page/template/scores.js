// Scores of images: their order, their text, and what is to be expected of the images that nobody reviews.

/** A score as text, such as 0.953 or, in pixels, 45 960. */
function formatScore(value, unit = "") {
  if (value == null) return "–";
  return unit === "pixels" ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : value.toFixed(3);
}

/** The indices of images sorted by one of their scores; those without it, of which nothing is known, come first. */
function sortedByScore(images, valueOf, descending) {
  const order = images.map((_, index) => index);
  const sign = descending ? -1 : 1;
  return order.sort((a, b) => {
    const [x, y] = [valueOf(images[a]), valueOf(images[b])];
    if (x == null || y == null) return (y == null) - (x == null) || a - b;
    return sign * (x - y) || a - b;
  });
}

/** The number of first images that includes all which are equal to the last of them. */
function includingTies(order, count, value) {
  while (count > 0 && count < order.length && value(order[count]) === value(order[count - 1])) count += 1;
  return count;
}

/** For k = 0 … n the mean of the values from position k on; null where there are none. */
function meansOfRest(values) {
  const means = new Array(values.length + 1).fill(null);
  let sum = 0, count = 0;
  for (let k = values.length - 1; k >= 0; k -= 1) {
    if (values[k] != null) { sum += values[k]; count += 1; }
    means[k] = count ? sum / count : null;
  }
  return means;
}

/** Draws curves of such means against k in an SVG of 240×64, with a line at the chosen k; returns lowest and highest. */
function drawCurves(svg, curves, chosen) {
  const points = curves.flatMap(curve => curve.means.filter(mean => mean != null));
  const low = points.reduce((a, b) => Math.min(a, b), 1);
  const high = points.reduce((a, b) => Math.max(a, b), 0);
  const last = curves[0].means.length - 1;
  const x = k => 240 * k / Math.max(1, last);
  const y = mean => 62 - 60 * (mean - low) / Math.max(1e-6, high - low);
  const step = Math.max(1, Math.floor(last / 240));
  const shapes = curves.filter(({ means }) => means[0] != null).map(({ means, name }) => {
    const known = means.map((mean, k) => [k, mean]).filter(([k, mean]) => mean != null && k % step === 0);
    return svgElement("path", { class: name, d: "M" + known.map(([k, mean]) => `${x(k).toFixed(1)},${y(mean).toFixed(1)}`).join("L") });
  });
  shapes.push(svgElement("line", { x1: x(chosen), x2: x(chosen), y1: 0, y2: 64 }));
  svg.replaceChildren(...(points.length ? shapes : []));
  return points.length ? [low, high] : [null, null];
}

function svgElement(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
