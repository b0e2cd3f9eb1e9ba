// The canvas of the slice viewer: draws what the kernel sends, tells it what the user does.
//
// Planes come as custom messages, so that no voxel is ever saved with a notebook. One message is
// under way at a time: what the user does meanwhile is added up, so that no queue builds up.

const ANSWER_MS = 10000; // after which a message counts as lost
const CLICK_PX = 4; // a pointer that moved less was a click
const NOTCH_PX = 100; // of a wheel, one slice
const GAP_PX = 6; // of the crosshair: leaves the voxel itself free
const BAR_SHARE = 0.3; // of the canvas, at most

// A colour for each of 255 labels: hues a golden angle apart are easy to tell apart.
function paletteOf() {
  const palette = new Uint8Array(256 * 4);
  for (let label = 1; label < 256; label++) {
    const hue = (label - 1) * 137.508;
    const light = 0.55 + 0.12 * (((label - 1) % 3) - 1);
    for (let i = 0; i < 3; i++) {
      const k = ([0, 8, 4][i] + hue / 30) % 12;
      const chroma = 0.9 * Math.min(light, 1 - light);
      const value = light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1));
      palette[4 * label + i] = Math.round(255 * value);
    }
    palette[4 * label + 3] = 255;
  }
  return palette;
}

const PALETTE = paletteOf();

// Turn the bytes of a layer into a picture that can be drawn at any size.
function pictureOf(layer, buffer) {
  const [rows, columns] = layer.shape;
  const bytes = new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  const picture = document.createElement("canvas");
  picture.width = columns;
  picture.height = rows;
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = new Uint32Array(PALETTE.buffer);
  for (let i = 0; i < pixels.length; i++) {
    if (layer.kind === "labels") pixels[i] = colours[bytes[i]];
    else if (layer.kind === "grey") pixels[i] = 0xff000000 | (bytes[i] * 0x010101);
    else pixels[i] = 0xff000000 | (bytes[3 * i + 2] << 16) | (bytes[3 * i + 1] << 8) | bytes[3 * i];
  }
  picture.getContext("2d").putImageData(image, 0, 0);
  return picture;
}

function roundLength(longest) {
  const power = 10 ** Math.floor(Math.log10(longest));
  return power * [5, 2, 1].find((factor) => factor * power <= longest);
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "mla-viewer";
  root.tabIndex = 0;
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own shortcuts stay out of it
  const canvas = document.createElement("canvas");
  const readout = document.createElement("div");
  readout.className = "mla-readout";
  root.append(canvas, readout);
  el.append(root);
  const pen = canvas.getContext("2d");
  const density = window.devicePixelRatio || 1;

  let shown = null; // the last plane message
  let pictures = [];
  let view = null; // {centre: [row, column], zoom}: moves at once, the kernel follows
  let pointer = null;
  let wheel = 0;
  let redraw = 0;

  // What the user did since the last message.
  let waiting = {};
  let number = 0;
  let answerTimer = 0;

  function tell(change) {
    for (const [kind, value] of Object.entries(change)) {
      waiting[kind] = kind === "scroll" ? (waiting.scroll || 0) + value : value;
    }
    flush();
  }

  function flush() {
    if (answerTimer || !Object.keys(waiting).length) return;
    const content = { ...waiting, number: ++number, epoch: shown ? shown.epoch : 0 };
    waiting = {};
    answerTimer = setTimeout(answered, ANSWER_MS);
    model.send(content);
  }

  function answered() {
    clearTimeout(answerTimer);
    answerTimer = 0;
    flush();
  }

  function onMessage(content, buffers) {
    if (content.kind === "plane") {
      pictures = content.layers.map((layer, i) => pictureOf(layer, buffers[i]));
      if (!shown || content.epoch !== shown.epoch) view = { ...content.view };
      shown = content;
      requestDraw();
    }
    if (content.text !== undefined) readout.textContent = content.text;
    if (content.number >= number) answered();
  }

  function requestDraw() {
    if (!redraw) redraw = requestAnimationFrame(draw);
  }

  // Pixels per voxel along rows and columns; below zero where the last row is at the top.
  function scales() {
    const [rows, columns] = shown.spacing;
    return [view.zoom * rows * (shown.is_flipped ? -1 : 1), view.zoom * columns];
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    const [perRow, perColumn] = scales();
    const x = (event.clientX - box.left) * (shown.size_px / box.width) - shown.size_px / 2;
    const y = (event.clientY - box.top) * (shown.size_px / box.height) - shown.size_px / 2;
    return [view.centre[0] + y / perRow, view.centre[1] + x / perColumn];
  }

  function draw() {
    redraw = 0;
    if (!shown) return;
    const size = shown.size_px;
    if (canvas.width !== Math.round(size * density)) {
      canvas.width = canvas.height = Math.round(size * density);
      canvas.style.width = `${size}px`;
    }
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, size, size);
    const [perRow, perColumn] = scales();
    const x = size / 2 - view.centre[1] * perColumn;
    const y = size / 2 - view.centre[0] * perRow;
    shown.layers.forEach((layer, i) => {
      const [[top, bottom], [left, right]] = layer.extent;
      const height = (bottom - top) / layer.shape[0];
      const width = (right - left) / layer.shape[1];
      pen.save();
      pen.translate(x + left * perColumn, y + top * perRow);
      pen.scale(width * perColumn, height * perRow);
      pen.globalAlpha = layer.kind === "labels" ? shown.opacity : 1;
      // Magnified voxels are shown as they are; what is made smaller is smoothed, but for labels.
      pen.imageSmoothingEnabled = layer.kind !== "labels" && Math.abs(width * perColumn) < 1;
      pen.drawImage(pictures[i], 0, 0);
      pen.restore();
    });
    drawCrosshair(x, y, perRow, perColumn, size);
    drawLetters(size);
    drawBar(size);
    root.dataset.drawn = shown.number;
  }

  function drawCrosshair(x, y, perRow, perColumn, size) {
    if (!shown.crosshair) return;
    const across = Math.round(x + (shown.crosshair[1] + 0.5) * perColumn) + 0.5;
    const down = Math.round(y + (shown.crosshair[0] + 0.5) * perRow) + 0.5;
    const lines = [
      [across, 0, across, down - GAP_PX],
      [across, down + GAP_PX, across, size],
      [0, down, across - GAP_PX, down],
      [across + GAP_PX, down, size, down],
    ];
    pen.strokeStyle = "rgba(255, 220, 0, 0.8)";
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [x0, y0, x1, y1] of lines) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.stroke();
  }

  function write(text, x, y, align) {
    pen.font = "13px sans-serif";
    pen.textAlign = align;
    pen.textBaseline = "middle";
    pen.strokeStyle = "#000";
    pen.lineWidth = 3;
    pen.strokeText(text, x, y);
    pen.fillStyle = "#fff";
    pen.fillText(text, x, y);
  }

  function drawLetters(size) {
    const rows = shown.row_letters && [...shown.row_letters];
    if (rows && shown.is_flipped) rows.reverse();
    if (rows) {
      write(rows[0], size / 2, 12, "center");
      write(rows[1], size / 2, size - 12, "center");
    }
    if (shown.column_letters) {
      write(shown.column_letters[0], 6, size / 2, "left");
      write(shown.column_letters[1], size - 6, size / 2, "right");
    }
    write(shown.caption, 6, 12, "left");
  }

  function drawBar(size) {
    const length = roundLength((BAR_SHARE * size) / view.zoom);
    pen.fillStyle = "#000";
    pen.fillRect(7, size - 13, length * view.zoom + 2, 5);
    pen.fillStyle = "#fff";
    pen.fillRect(8, size - 12, length * view.zoom, 3);
    write(`${Number(length.toPrecision(1))} ${shown.unit}`, 8, size - 24, "left");
  }

  function look(centre, zoom) {
    view = { centre, zoom: Math.min(Math.max(zoom, shown.zooms[0]), shown.zooms[1]) };
    requestDraw();
    tell({ look: [view.centre[0], view.centre[1], view.zoom] });
  }

  // Zoom with one place of the plane staying where it is.
  function zoomAt(place, factor) {
    const zoom = Math.min(Math.max(view.zoom * factor, shown.zooms[0]), shown.zooms[1]);
    const share = view.zoom / zoom;
    look(view.centre.map((middle, i) => place[i] + (middle - place[i]) * share), zoom);
  }

  function onWheel(event) {
    if (!shown) return;
    event.preventDefault();
    // By pixels, lines or pages; a notch of a mouse wheel is three lines.
    const px = event.deltaY * [1, NOTCH_PX / 3, NOTCH_PX][event.deltaMode];
    if (event.ctrlKey || event.metaKey) {
      zoomAt(placeOf(event), Math.exp(-px / 300));
      return;
    }
    wheel += px;
    const steps = Math.trunc(wheel / NOTCH_PX);
    wheel -= steps * NOTCH_PX;
    if (steps) tell({ scroll: steps });
  }

  function onDown(event) {
    if (!shown || event.button !== 0) return;
    root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointer = { x: event.clientX, y: event.clientY, centre: [...view.centre], isDrag: false };
  }

  function onMove(event) {
    if (!pointer) return;
    const [dx, dy] = [event.clientX - pointer.x, event.clientY - pointer.y];
    pointer.isDrag = pointer.isDrag || Math.hypot(dx, dy) > CLICK_PX;
    if (!pointer.isDrag) return;
    const [perRow, perColumn] = scales();
    look([pointer.centre[0] - dy / perRow, pointer.centre[1] - dx / perColumn], view.zoom);
  }

  function onUp(event) {
    if (pointer && !pointer.isDrag) tell({ pick: placeOf(event) });
    pointer = null;
  }

  const KEYS = {
    ArrowUp: () => tell({ scroll: 1 }),
    ArrowRight: () => tell({ scroll: 1 }),
    ArrowDown: () => tell({ scroll: -1 }),
    ArrowLeft: () => tell({ scroll: -1 }),
    PageUp: () => tell({ scroll: 10 }),
    PageDown: () => tell({ scroll: -10 }),
    "+": () => zoomAt(view.centre, 1.25),
    "-": () => zoomAt(view.centre, 0.8),
  };

  function onKey(event) {
    if (!shown || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    KEYS[event.key]();
  }

  model.on("msg:custom", onMessage);
  canvas.addEventListener("wheel", onWheel, { passive: false });
  canvas.addEventListener("pointerdown", onDown);
  canvas.addEventListener("pointermove", onMove);
  canvas.addEventListener("pointerup", onUp);
  canvas.addEventListener("pointercancel", () => { pointer = null; });
  root.addEventListener("keydown", onKey);
  tell({ opened: true });
  return () => {
    clearTimeout(answerTimer);
    cancelAnimationFrame(redraw);
    model.off("msg:custom", onMessage);
    model.send({ closed: true });
  };
}

export default { render };
