// Panes: the photograph with a layer and contours, zoomed and moved together.

/** Which part of the image the panes show: zoom 1 is the whole image; x and y are its middle, in pixels of the maps. */
const camera = { zoom: 1, x: 0, y: 0, width: 1, height: 1 };

function resetCamera(width, height) {
  Object.assign(camera, { zoom: 1, x: width / 2, y: height / 2, width, height });
}

/** Zooms by a factor, such that the given point, in pixels of the maps, stays where it is. */
function zoomCamera(factor, x = camera.x, y = camera.y) {
  const zoom = Math.min(Math.max(camera.zoom * factor, 1), 40);
  const change = camera.zoom / zoom;
  moveCamera(x + (camera.x - x) * change, y + (camera.y - y) * change, zoom);
}

function moveCamera(x, y, zoom = camera.zoom) {
  const { width, height } = camera;
  camera.zoom = zoom;
  camera.x = zoom === 1 ? width / 2 : Math.min(Math.max(x, 0), width);
  camera.y = zoom === 1 ? height / 2 : Math.min(Math.max(y, 0), height);
}

class Pane {
  /** `onMove` is called after the camera has moved, `onPoint` with the pixel below the pointer, or nothing. */
  constructor(onMove, onPoint) {
    this.element = document.createElement("figure");
    this.element.className = "pane";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.caption = document.createElement("figcaption");
    this.element.append(this.canvas, this.caption);
    this.onMove = onMove;
    this.content = null;
    this.pointers = new Map();
    const canvas = this.canvas;
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      zoomCamera(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), ...this.pointAt(event));
      onMove();
    }, { passive: false });
    canvas.addEventListener("dblclick", event => {
      if (camera.zoom > 1) moveCamera(0, 0, 1);
      else zoomCamera(3, ...this.pointAt(event));
      onMove();
    });
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    });
    canvas.addEventListener("pointermove", event => {
      onPoint(...this.pointAt(event));
      if (this.pointers.has(event.pointerId)) this.drag(event);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => onPoint());
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Pixels of the screen per pixel of the maps. */
  get scale() {
    return camera.zoom * Math.min(this.element.clientWidth / camera.width, this.element.clientHeight / camera.height);
  }

  pointAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      camera.x + (event.clientX - box.left - box.width / 2) / this.scale,
      camera.y + (event.clientY - box.top - box.height / 2) / this.scale,
    ];
  }

  /** One pointer moves the image, two zoom it. */
  drag(event) {
    const before = this.pointers.get(event.pointerId);
    const other = [...this.pointers.values()].find(one => one.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (other) {
      const distance = one => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      zoomCamera(distance(event) / Math.max(1, distance(before)), ...this.pointAt(other));
    } else {
      moveCamera(camera.x - (event.clientX - before.clientX) / this.scale, camera.y - (event.clientY - before.clientY) / this.scale);
    }
    this.onMove();
  }

  /** `content`: photo, layer (a canvas), opacity, and contours, each with a path and a colour. */
  show(content) {
    this.content = content;
    this.draw();
  }

  draw() {
    const { canvas, content } = this;
    const ratio = window.devicePixelRatio;
    canvas.width = Math.round(this.element.clientWidth * ratio);
    canvas.height = Math.round(this.element.clientHeight * ratio);
    canvas.classList.toggle("zoomed", camera.zoom > 1);
    if (!content) return;
    const context = canvas.getContext("2d");
    const scale = this.scale * ratio;
    context.setTransform(scale, 0, 0, scale, canvas.width / 2 - camera.x * scale, canvas.height / 2 - camera.y * scale);
    context.imageSmoothingQuality = "high";
    if (content.photo) context.drawImage(content.photo, 0, 0, camera.width, camera.height);
    if (content.layer) {
      context.globalAlpha = content.opacity;
      context.drawImage(content.layer, 0, 0, camera.width, camera.height);
      context.globalAlpha = 1;
    }
    context.lineJoin = "round";
    for (const [width, colourOf] of [[4, () => "#000a"], [2, contour => contour.colour]]) {
      context.lineWidth = width / this.scale;
      for (const contour of content.contours) {
        context.strokeStyle = colourOf(contour);
        context.setLineDash(contour.dashed ? [7 / this.scale, 4 / this.scale] : []);
        context.stroke(contour.path);
      }
    }
  }
}
