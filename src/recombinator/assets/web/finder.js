// Find objects with a finder network: image pyramid, decoding of its maps, suppression of duplicates.
// The arithmetic is that of recombinator.predict.finder in Python; all numbers come from model.json.

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
 * Yield what `detect` finds in an image, then less certain, larger and smaller objects; see FinderDetector.search in
 * Python. The parameters are those of `detect`.
 */
export async function* search(image, finder, run) {
  const view = shrunk(image, finder);
  const maps = await seen(view, finder, run, finder.sides);
  yield decoded(view, finder, maps, finder.threshold);
  const coarser = await seen(view, finder, run, finder.coarser);
  const further = decoded(view, finder, [...maps, ...coarser], finder.doubtful * finder.threshold);
  yield further.sort((a, b) => b.score - a.score).slice(0, finder.mostDoubtful);
  if (Math.max(view.width, view.height) >= finder.leastStep * Math.max(...finder.sides)) {
    yield decoded(view, finder, await seen(view, finder, run, finder.finest), finder.threshold);
  }
}

/**
 * Find the objects of an image, largest first.
 *
 * image: ImageData. finder: model.json's. run: async (tensor data, shape) => {data, rows, columns}, the network.
 * Returns {x, y, side, angle, score} in image pixels.
 */
export async function detect(image, finder, run) {
  const view = shrunk(image, finder);
  return decoded(view, finder, await seen(view, finder, run, finder.sides), finder.threshold);
}

/** An image at 1/8, 1/4, 1/2 or all of its size, but not smaller than it is seen, as {width, height, planes, factor}. */
function shrunk(image, finder) {
  const longest = Math.max(image.width, image.height);
  const whole = [8, 4, 2].find((f) => longest >= f * Math.max(...finder.sides) && Math.min(image.width, image.height) >= f);
  const factor = whole ?? 1, [width, height] = [image.width, image.height].map((side) => Math.floor(side / factor));
  const planes = cutPlanes(image, 0, 0, width * factor, height * factor, finder.channels);
  return { ...(factor > 1 ? resizeArea(planes, width, height) : planes), factor };
}

/** The maps of each size at which an image is seen, with its scale. */
async function seen(view, finder, run, sides) {
  const longest = Math.max(view.width, view.height);
  const steps = [];
  for (const wanted of sides) {
    const side = steps.length ? Math.min(wanted, longest) : wanted;
    if (steps.length && side < finder.leastStep * steps.at(-1)) break;
    steps.push(side);
  }
  let pixels = view;
  const all = [];
  for (const side of steps.reverse()) { // each is made of the one before, which is larger
    const scale = side / longest;
    pixels = resized(pixels, view, scale);
    const { data, shape } = asInput(pixels, finder);
    all.push({ ...await run(data, shape), scale });
  }
  return all;
}

/** The objects of all sizes, largest first. */
function decoded({ width, height, factor }, finder, all, threshold) {
  const found = [];
  for (const { data, rows, columns, scale } of all) {
    const limit = finder.largest * Math.min(width, height) * scale;
    for (const one of decode(data, rows, columns, { ...finder, threshold })) {
      if (one.side < finder.smallest || one.side > limit) continue;
      const [x, y, side] = [one.x, one.y, one.side].map((v) => (v / scale) * factor);
      found.push({ ...one, x, y, side });
    }
  }
  return suppressed(found, finder.same).sort((a, b) => b.side - a.side);
}
