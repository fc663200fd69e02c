// Lines of traces on canvases.

import { endedAt, pointsAt, tokenOf, tokensAt } from "./tape.js";

const MARGIN = 3; // Pixels above and below a small line, so that its end is not cut off.

/** Give a canvas the size that it has on screen, in the screen's own pixels. */
export function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/**
 * Stroke some points of a trace's line.
 *
 * What comes before the first full group is fainter: no threshold looks at it. A line with a margin
 * is a small one, on the scale of the middle.
 */
export function strokeLine(context, trace, [from, to], scales, { width, height, alpha = 1, margin = null }) {
  const full = Math.max(from, Math.min(trace.partial, to));
  for (const [begin, end, strength] of [
    [from, Math.min(full + 1, to), 0.5],
    [full, to, 1],
  ]) {
    if (end - begin < 2) continue;
    context.globalAlpha = alpha * strength;
    context.beginPath();
    let pen = false;
    for (let i = begin; i < end; i++) {
      const point = trace.points[i];
      if (point !== null) {
        const x = scales.x(tokenOf(trace, i), width);
        const y = margin === null ? scales.yOf(point, height) : small(scales, point / 100, height, margin);
        if (pen) context.lineTo(x, y);
        else context.moveTo(x, y);
      }
      pen = point !== null;
    }
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** Mark the end of a trace that was stopped. */
export function cross(context, x, y, colour, size = 3) {
  context.strokeStyle = colour;
  context.beginPath();
  context.moveTo(x - size, y - size);
  context.lineTo(x + size, y + size);
  context.moveTo(x + size, y - size);
  context.lineTo(x - size, y + size);
  context.stroke();
}

/** One trace on a small canvas: its line with the threshold; or its tokens, without confidences. */
export function sparkline(canvas, trace, scales, moment, colours, leads) {
  const { context, width, height } = prepared(canvas);
  if (!width) return;
  const ended = endedAt(trace, moment.time);
  const ink = !ended ? colours.ink : leads ? colours.accent : colours.faint;
  if (!scales.known) {
    context.fillStyle = ink;
    context.fillRect(0, height / 2 - 4, Math.max(scales.x(tokensAt(trace, moment.time), width), 1), 8);
    return;
  }
  const room = { width, height, margin: MARGIN };
  if (moment.gate) dashes(context, moment.gate, scales, room, colours.low);
  const count = pointsAt(trace, moment.time);
  context.lineWidth = 1.4;
  context.lineJoin = "round";
  context.strokeStyle = ink;
  strokeLine(context, trace, [0, count], scales, room);
  const point = trace.points[count - 1] ?? null;
  if (point === null) return;
  const x = Math.min(scales.x(tokenOf(trace, count - 1), width), width - MARGIN);
  const y = small(scales, point / 100, height, MARGIN);
  if (ended && trace.end.finish === "low_confidence") return cross(context, x, y, colours.low);
  context.fillStyle = ink;
  context.beginPath();
  context.arc(x, y, ended ? 2 : 2.6, 0, 2 * Math.PI);
  context.fill();
}

function small(scales, confidence, height, margin) {
  return margin + scales.yMiddle(confidence, height - 2 * margin);
}

function dashes(context, gate, scales, { width, height, margin }, colour) {
  const y = small(scales, gate.threshold, height, margin);
  context.strokeStyle = colour;
  context.globalAlpha = 0.6;
  context.lineWidth = 1;
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(scales.x(gate.window, width), y);
  context.lineTo(width, y);
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
}
