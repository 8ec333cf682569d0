// Cut a network's input from an image by one affine, with the arithmetic of recombinator.predict.crop in Python.
//
// Points are [x, y]; a pixel's center is at its integer + 0.5. Affines are [[a, b, c], [d, e, f]].

import { cutPlanes, resizeLanczos, resizeLinear, roundEven, warp } from './resample.js';

const LANCZOS_REACH = 3; // of the filter, in cells
const FAR = 2 ** 20; // pixels; moves an image away from the limits of a frame

export const apply = ([[a, b, c], [d, e, f]], [x, y]) => [a * x + b * y + c, d * x + e * y + f];

/** Affine that rotates points clockwise on the screen. */
export function rotation(degrees) {
  const turn = (degrees * Math.PI) / 180, cos = Math.cos(turn), sin = Math.sin(turn);
  return [[cos, -sin, 0], [sin, cos, 0]];
}

function inverted([[a, b, c], [d, e, f]]) {
  const det = a * e - b * d;
  const [p, q, r, s] = [e / det, -b / det, -d / det, a / det];
  return [[p, q, -(p * c + q * f)], [r, s, -(r * c + s * f)]];
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];

// ---- where a crop rule places its square: [x, y, side] in whole pixels (recombinator.data.crops) --------------------

function squared(points, low, high) {
  let [x0, y0] = [0, 1].map((i) => low(Math.min(...points.map((p) => p[i]))));
  let [x1, y1] = [0, 1].map((i) => high(Math.max(...points.map((p) => p[i]))));
  const extra = x1 - x0 - (y1 - y0), grow = Math.abs(extra) / 2;
  if (extra > 0) {
    y0 -= Math.ceil(grow);
    y1 += Math.floor(grow);
  } else {
    x0 -= Math.ceil(grow);
    x1 += Math.floor(grow);
  }
  return [x0, y0, x1, y1];
}

function movedInside(start, full, side, limit) {
  const own = Math.min(full, limit);
  return Math.max(0, Math.min(start, limit - own)) + Math.ceil((own - side) / 2);
}

export const BOXES = {
  eye_mouth_box(points, factor, width, height) {
    const [leftEye, rightEye, , leftMouth, rightMouth] = points;
    const [x0, y0, x1] = squared([leftEye, rightEye, leftMouth, rightMouth], Math.trunc, Math.trunc);
    const reach = Math.max(
      distance(leftEye, rightEye), distance(middle(leftEye, rightEye), middle(leftMouth, rightMouth)),
    );
    const out = Math.trunc(factor * reach), full = x1 - x0 + 2 * out;
    const side = Math.min(full, width, height);
    return [movedInside(x0 - out, full, side, width), movedInside(y0 - out, full, side, height), side];
  },
  scaled_box(points, factor) {
    const [x0, y0, x1] = squared(points, Math.floor, Math.ceil);
    const out = ((x1 - x0) * (factor - 1)) / 2, left = Math.floor(x0 - out);
    return [left, Math.floor(y0 - out), Math.ceil(x1 + out) - left];
  },
  image_box(points, factor, width, height) {
    const side = roundEven(Math.max(width, height) * factor);
    return [-Math.floor((side - width) / 2), -Math.floor((side - height) / 2), side];
  },
};

/** Affine that turns an image by -degrees onto a canvas that holds all of it, and the size of the canvas. */
function uprightAffine(width, height, degrees) {
  if (degrees === 0) return { affine: [[1, 0, 0], [0, 1, 0]], frame: [width, height] };
  const [[a, b], [d, e]] = rotation(-degrees);
  const frame = [Math.abs(a) * width + Math.abs(b) * height, Math.abs(d) * width + Math.abs(e) * height]
    .map((v) => Math.ceil(v - 1e-6));
  const shift = [frame[0] / 2 - (a * width + b * height) / 2, frame[1] / 2 - (d * width + e * height) / 2];
  return { affine: [[a, b, shift[0]], [d, e, shift[1]]], frame };
}

/** The stage-1 square in a frame, and the network's square in its cells; without a frame there are no limits. */
function place(numbers, rule, size, frame) {
  const box = BOXES[rule.box];
  const [shift, limits] = frame ? [0, frame] : [FAR, [2 * FAR, 2 * FAR]];
  const [left, top, side] = box(numbers.map((p) => p.map((v) => v + shift)), rule.stage1, ...limits);
  if (side < 4) return null;
  const x = left - shift, y = top - shift;
  const grid = rule.detailed ? Math.max(rule.grid, Math.ceil((size * rule.stage1) / rule.stage2)) : rule.grid;
  const cell = side / grid, inGrid = rule.grid / grid;
  const inner = box(numbers.map((p) => [((p[0] - x) / cell) * inGrid, ((p[1] - y) / cell) * inGrid]),
    rule.stage2, rule.grid, rule.grid).map((v) => Math.fround(v / Math.fround(inGrid)));
  const square = [inner[0] * cell + x, inner[1] * cell + y, inner[2] * cell];
  return { x, y, side, cell, inner, square };
}

/**
 * Cut the network's input around an object.
 *
 * image: ImageData. points: rough points in image pixels. rule: model.json's crop. degrees: rotation of the object,
 * clockwise on the screen. free: place the square as if the image did not end; beyond its border it is mirrored.
 * Returns {planes, toImage, pixel, moved}: size x size Uint8Arrays, the affine from the input's pixels to the image's,
 * the side of one of them in the image, and whether the rule moved the square into the image; null where the points
 * leave no crop.
 */
export function cropObject(image, points, rule, size, channels, degrees = 0, free = false) {
  if (!points.flat().every(Number.isFinite)) return null;
  const { affine, frame } = uprightAffine(image.width, image.height, degrees);
  const numbers = points.map((p) => apply(affine, p).map((v) => v + rule.origin));
  const limited = place(numbers, rule, size, frame);
  const unlimited = rule.whole ? limited : place(numbers, rule, size, null);
  if (!limited || !unlimited) return null;
  const { x, y, side, cell, inner } = free ? unlimited : limited;
  const step = inner[2] / size; // of the network's pixels, in cells
  const back = inverted(affine), pixel = step * cell;
  const moved = limited.square.some((v, i) => Math.abs(v - unlimited.square[i]) >= pixel);
  const start = apply(back, [inner[0] * cell + x, inner[1] * cell + y]);
  const linear = [[back[0][0] * pixel, back[0][1] * pixel], [back[1][0] * pixel, back[1][1] * pixel]];
  const toImage = linear.map((row, i) => [...row, start[i]]);
  if (degrees === 0 && step >= 1) {
    const low = [0, 1].map((i) => Math.floor(inner[i]));
    const count = [0, 1].map((i) => Math.ceil(inner[i] + inner[2]) - low[i]);
    const limits = [x, y, x + side, y + side]; // as in training, where stage 2 sees only stage 1
    const cells = cutCells(image, [x + low[0] * cell, y + low[1] * cell], count, cell, channels, rule, free, limits);
    return { planes: resizeLinear(cells, size, size, true).planes, toImage, pixel, moved };
  }
  const corners = [[0, 0], [size, 0], [0, size], [size, size]].map((p) => apply(toImage, p));
  const least = [0, 1].map((i) => Math.min(...corners.map((p) => p[i])));
  const most = [0, 1].map((i) => Math.max(...corners.map((p) => p[i])));
  const first = least.map((v) => v - 2 * cell);
  const count = [0, 1].map((i) => Math.ceil((most[i] - least[i]) / cell) + 4);
  const cells = cutCells(image, first, count, cell, channels, rule, free);
  const matrix = linear.map(([a, b], i) => {
    const [p, q] = [a / cell, b / cell];
    return [p, q, (start[i] - first[i]) / cell + (p + q) / 2 - 0.5]; // for pixels whose centers are integers
  });
  return { planes: warp(cells, matrix, size).planes, toImage, pixel, moved };
}

/** Compute count[0] x count[1] cells of `cell` pixels, the first of which begins at `start`, inside `limits`. */
function cutCells(image, start, count, cell, channels, rule, free, limits = null) {
  const margin = LANCZOS_REACH * Math.max(cell, 1) + 1;
  const low = start.map((v) => Math.floor(v - margin));
  const high = start.map((v, i) => Math.ceil(v + count[i] * cell + margin));
  for (const i of limits ? [0, 1] : []) {
    low[i] = Math.max(low[i], limits[i]);
    high[i] = Math.min(high[i], limits[i + 2]);
  }
  const part = cutPlanes(image, ...low, ...high, channels, free);
  const first = start.map((v, i) => Math.max(v - low[i], 0));
  const last = [0, 1].map((i) => Math.min(first[i] + count[i] * cell, high[i] - low[i]));
  return resizeLanczos(part, ...count, [...first, ...last], rule.reducingGap);
}
