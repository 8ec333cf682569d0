// Find objects with a finder network: image pyramid, decoding of its maps, suppression of duplicates.
// The arithmetic is that of recombinator.predict.find in Python; all numbers come from model.json.

import { cutPlanes, resizeArea, resizeLinear, roundEven } from './resample.js';

/** An image of this width and height, or a smaller one made of it, at `scale` times that size. */
export function resized(image, { width, height }, scale) {
  const [rows, columns] = [height, width].map((v) => Math.max(1, roundEven(v * scale)));
  if (image.height === rows && image.width === columns) return image;
  return (rows <= image.height ? resizeArea : resizeLinear)(image, columns, rows);
}

/**
 * The finder's input of one image, with gray borders at the right and at the bottom.
 *
 * image: {width, height, planes}. finder: model.json's. Returns {data, shape}.
 */
export function asInput({ width, height, planes }, finder) {
  const [rows, columns] = [height, width].map((v) => Math.ceil(v / finder.coarsest) * finder.coarsest);
  const data = new Float32Array(planes.length * rows * columns).fill(finder.gray);
  planes.forEach((plane, c) => {
    for (let y = 0; y < height; y++) {
      data.set(plane.subarray(y * width, (y + 1) * width), (c * rows + y) * columns);
    }
  });
  return { data, shape: [1, planes.length, rows, columns] };
}

/**
 * Decode a finder's maps: one object per local maximum of the probability.
 *
 * maps: Float32Array of 6 x rows x columns. Returns objects {x, y, side, angle, score}, in pixels of the network's
 * input and degrees clockwise on the screen, most certain first.
 */
export function decode(maps, rows, columns, finder) {
  const count = rows * columns, least = Math.log(finder.threshold / (1 - finder.threshold));
  const found = [];
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const at = y * columns + x;
      if (maps[at] < least || !isHighest(maps, x, y, rows, columns)) continue;
      const [logit, dx, dy, size, cosine, sine] = [0, 1, 2, 3, 4, 5].map((k) => maps[k * count + at]);
      found.push({
        x: (x + 0.5 + dx) * finder.stride,
        y: (y + 0.5 + dy) * finder.stride,
        side: finder.reference * Math.exp(Math.min(Math.max(size, -5), 5)),
        angle: (Math.atan2(sine, cosine) * 180) / Math.PI,
        score: 1 / (1 + Math.exp(-logit)),
        logit,
      });
    }
  }
  return found.sort((a, b) => b.logit - a.logit).slice(0, finder.most);
}

function isHighest(logits, x, y, rows, columns) {
  const own = logits[y * columns + x];
  for (let j = Math.max(y - 1, 0); j <= Math.min(y + 1, rows - 1); j++) {
    for (let i = Math.max(x - 1, 0); i <= Math.min(x + 1, columns - 1); i++) {
      if (logits[j * columns + i] > own) return false;
    }
  }
  return true;
}

/** Keep the most certain of the squares that overlap, rotation aside. */
export function suppressed(found, same) {
  const kept = [];
  for (const one of [...found].sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlap(one, other) <= same)) kept.push(one);
  }
  return kept;
}

/** Intersection over union of two upright squares. */
function overlap(a, b) {
  const along = (axis) => Math.min(a[axis] + a.side / 2, b[axis] + b.side / 2) - Math.max(a[axis] - a.side / 2, b[axis] - b.side / 2);
  const shared = Math.max(along('x'), 0) * Math.max(along('y'), 0);
  return shared / (a.side ** 2 + b.side ** 2 - shared);
}

/**
 * Find the objects of an image, largest first.
 *
 * image: ImageData. finder: model.json's. run: async (tensor data, shape) => {data, rows, columns}, the network.
 * smaller: look only for objects too small for the normal sizes. Returns {x, y, side, angle, score} in image pixels.
 */
export async function findObjects(image, finder, run, smaller = false) {
  const longest = Math.max(image.width, image.height);
  const largest = Math.max(...finder.sides);
  const sides = smaller ? finder.finest.filter(() => longest >= finder.leastStep * largest) : finder.sides;
  if (!sides.length) return [];
  const steps = [];
  for (const wanted of sides) {
    const side = steps.length ? Math.min(wanted, longest) : wanted;
    if (steps.length && side < finder.leastStep * steps.at(-1)) break;
    steps.push(side);
  }
  let pixels = cutPlanes(image, 0, 0, image.width, image.height, finder.channels);
  const found = [];
  for (const side of steps.reverse()) { // each is made of the one before, which is larger
    const scale = side / longest;
    pixels = resized(pixels, image, scale);
    const { data, shape } = asInput(pixels, finder);
    const maps = await run(data, shape);
    const limit = finder.largest * Math.min(image.width, image.height) * scale;
    for (const one of decode(maps.data, maps.rows, maps.columns, finder)) {
      if (one.side < finder.smallest || one.side > limit) continue;
      found.push({ ...one, x: one.x / scale, y: one.y / scale, side: one.side / scale });
    }
  }
  return suppressed(found, finder.same).sort((a, b) => b.side - a.side);
}
