// Pixels: gray, resizing and warping, with the rounding of OpenCV and Pillow, so that points equal Python's.
//
// An image is {width, height, planes}: one Uint8Array for gray, three for red, green and blue.

const LANCZOS_LOBES = 3;
const COEFFICIENT_BITS = 22; // of Pillow's fixed-point filters
const WARP_BITS = 5; // of OpenCV's position between two pixels in warpAffine

export const emptyImage = (width, height, channels, value = 0) => ({
  width, height, planes: Array.from({ length: channels }, () => new Uint8Array(width * height).fill(value)),
});

/** Round half to even, as Python's round and OpenCV's cvRound do. */
export function roundEven(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/**
 * Copy a rectangle of ImageData into planes. Pixels outside the image are black, or with `mirrored` those inside it.
 * Gray has the weights of ITU-R BT.601 in 15 bits, as OpenCV computes it.
 */
export function cutPlanes(image, x0, y0, x1, y1, channels, mirrored = false) {
  const { width, height, data } = image;
  const left = Math.min(Math.max(x0, 0), width), right = Math.min(Math.max(x1, left), width);
  const top = Math.min(Math.max(y0, 0), height), bottom = Math.min(Math.max(y1, top), height);
  const out = emptyImage(x1 - x0, y1 - y0, channels);
  const [gray, green, blue] = out.planes;
  for (let y = top; y < bottom; y++) {
    let to = (y - y0) * out.width + left - x0, from = 4 * (y * width + left);
    for (let x = left; x < right; x++, to++, from += 4) {
      if (channels === 1) {
        gray[to] = (data[from] * 9798 + data[from + 1] * 19235 + data[from + 2] * 3735 + 16384) >> 15;
      } else {
        gray[to] = data[from];
        green[to] = data[from + 1];
        blue[to] = data[from + 2];
      }
    }
  }
  if (mirrored && right > left && bottom > top) mirrorBorder(out, left - x0, top - y0, right - x0, bottom - y0);
  return out;
}

/** Fill what is outside a rectangle with its mirror image, the outermost pixels repeated. */
function mirrorBorder({ width, height, planes }, x0, y0, x1, y1) {
  const source = (at, low, high) => {
    const span = high - low, place = (((at - low) % (2 * span)) + 2 * span) % (2 * span);
    return low + (place < span ? place : 2 * span - 1 - place);
  };
  const columns = Array.from({ length: width }, (_, x) => source(x, x0, x1));
  for (let y = 0; y < height; y++) {
    const row = source(y, y0, y1), outside = y < y0 || y >= y1;
    for (let x = 0; x < width; x++) {
      if (!outside && x >= x0 && x < x1) continue;
      for (const plane of planes) plane[y * width + x] = plane[row * width + columns[x]];
    }
  }
}

const mapPlanes = (image, width, height, change) => ({ width, height, planes: image.planes.map(change) });

// ---- Pillow: Lanczos, after whole pixels are averaged where an image shrinks a lot ----------------------------------

function lanczos(x) {
  if (x === 0) return 1;
  if (x < -LANCZOS_LOBES || x >= LANCZOS_LOBES) return 0;
  const a = x * Math.PI, b = a / LANCZOS_LOBES;
  return (Math.sin(a) / a) * (Math.sin(b) / b);
}

/** The filter of each output pixel along one axis: first input pixel and fixed-point weights. */
function lanczosFilters(inputs, start, end, outputs) {
  const scale = Math.fround(end - start) / outputs, stretch = Math.max(scale, 1);
  const support = LANCZOS_LOBES * stretch;
  return Array.from({ length: outputs }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), inputs);
    const weights = [];
    for (let x = first; x < last; x++) weights.push(lanczos((x - center + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: Int32Array.from(weights, (w) => Math.trunc((w / sum) * 2 ** COEFFICIENT_BITS + Math.sign(w) * 0.5)) };
  });
}

/** Filter along one axis; `step` separates its pixels and `across` the `lines` that are filtered. */
function filtered(plane, filters, step, lines, across, out, outStep, outAcross) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < filters.length; i++) {
      const { first, weights } = filters[i];
      let sum = 1 << (COEFFICIENT_BITS - 1), at = line * across + first * step;
      for (let k = 0; k < weights.length; k++, at += step) sum += plane[at] * weights[k];
      sum >>= COEFFICIENT_BITS;
      out[line * outAcross + i * outStep] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
    }
  }
  return out;
}

/** Average blocks of fx x fy pixels of a rectangle; blocks at its right and lower border can be smaller. */
function reduced(image, fx, fy, [x0, y0, x1, y1]) {
  const width = Math.ceil((x1 - x0) / fx), height = Math.ceil((y1 - y0) / fy);
  return mapPlanes(image, width, height, (plane) => {
    const out = new Uint8Array(width * height);
    for (let j = 0; j < height; j++) {
      for (let i = 0; i < width; i++) {
        const left = x0 + i * fx, top = y0 + j * fy;
        const right = Math.min(left + fx, x1), bottom = Math.min(top + fy, y1);
        const count = (right - left) * (bottom - top);
        let sum = count >> 1;
        for (let y = top; y < bottom; y++) {
          for (let x = left; x < right; x++) sum += plane[y * image.width + x];
        }
        out[j * width + i] = (sum * Math.floor(2 ** 32 / (256 * count))) / 2 ** 24;
      }
    }
    return out;
  });
}

/** Resize the box [x0, y0, x1, y1] of an image, as Pillow does with Lanczos and a reducing gap. */
export function resizeLanczos(image, width, height, box, gap) {
  const fx = Math.max(Math.trunc((box[2] - box[0]) / width / gap), 1);
  const fy = Math.max(Math.trunc((box[3] - box[1]) / height / gap), 1);
  if (fx > 1 || fy > 1) {
    const sx = ((LANCZOS_LOBES - 0.5) * (box[2] - box[0])) / width;
    const sy = ((LANCZOS_LOBES - 0.5) * (box[3] - box[1])) / height;
    const safe = [
      Math.max(0, Math.trunc(box[0] - sx)), Math.max(0, Math.trunc(box[1] - sy)),
      Math.min(image.width, Math.ceil(box[2] + sx)), Math.min(image.height, Math.ceil(box[3] + sy)),
    ];
    image = reduced(image, fx, fy, safe);
    box = box.map((v, i) => (v - safe[i % 2]) / (i % 2 ? fy : fx));
  }
  const [x0, y0, x1, y1] = box.map(Math.fround);
  const columns = lanczosFilters(image.width, x0, x1, width);
  const rows = lanczosFilters(image.height, y0, y1, height);
  const acrossIsFree = width === image.width && x0 === 0 && x1 === width; // Pillow filters no axis that stays as it is
  const downIsFree = height === image.height && y0 === 0 && y1 === height;
  return mapPlanes(image, width, height, (plane) => {
    const wide = acrossIsFree
      ? plane
      : filtered(plane, columns, 1, image.height, image.width, new Uint8Array(width * image.height), 1, width);
    return downIsFree ? wide : filtered(wide, rows, width, width, 1, new Uint8Array(width * height), width, 1);
  });
}

// ---- OpenCV ---------------------------------------------------------------------------------------------------------

/** Along one axis, the two input pixels of each output pixel and the weight of the second, for linear interpolation. */
function linearPairs(inputs, outputs) {
  const scale = inputs / outputs;
  return Array.from({ length: outputs }, (_, i) => {
    const at = Math.fround((i + 0.5) * scale - 0.5), low = Math.floor(at);
    if (low < 0) return [0, 0, 0];
    return low >= inputs - 1 ? [inputs - 1, inputs - 1, 0] : [low, low + 1, Math.fround(at - low)];
  });
}

/** Between two rows of pixels, as OpenCV does for images of floats. */
function blendFloats(a, b, c, d, across, down) {
  const left = Math.fround(1 - across), top = Math.fround(1 - down), f = Math.fround;
  const upper = f(f(a * left) + f(b * across)), lower = f(f(c * left) + f(d * across));
  return roundEven(f(f(upper * top) + f(lower * down)));
}

/** Between two rows of pixels, as OpenCV does for images of bytes: weights have 11 bits. */
function blendBytes(a, b, c, d, across, down) {
  const right = roundEven(across * 2048), left = roundEven(Math.fround(1 - across) * 2048);
  const bottom = roundEven(down * 2048), top = roundEven(Math.fround(1 - down) * 2048);
  const upper = (a * left + b * right) >> 4, lower = (c * left + d * right) >> 4;
  return (((top * upper) >> 16) + ((bottom * lower) >> 16) + 2) >> 2;
}

/** Resize with linear interpolation; `floats`: round as for an image of floats, and not of bytes. */
export function resizeLinear(image, width, height, floats = false) {
  if (width === image.width && height === image.height) return image;
  const columns = linearPairs(image.width, width), rows = linearPairs(image.height, height);
  const blend = floats ? blendFloats : blendBytes;
  return mapPlanes(image, width, height, (plane) => {
    const out = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const top = rows[y][0] * image.width, bottom = rows[y][1] * image.width, down = rows[y][2];
      for (let x = 0; x < width; x++) {
        const [left, right, across] = columns[x];
        out[y * width + x] = blend(
          plane[top + left], plane[top + right], plane[bottom + left], plane[bottom + right], across, down,
        );
      }
    }
    return out;
  });
}

/** Along one axis, the input pixels that each output pixel covers, and their shares. */
function areaFilters(inputs, outputs) {
  const scale = inputs / outputs;
  return Array.from({ length: outputs }, (_, i) => {
    const start = i * scale, end = start + scale, cell = Math.min(scale, inputs - start);
    let low = Math.ceil(start), high = Math.min(Math.floor(end), inputs - 1);
    low = Math.min(low, high);
    const weights = [];
    let first = low;
    if (low - start > 1e-3) {
      first = low - 1;
      weights.push(Math.fround((low - start) / cell));
    }
    for (let x = low; x < high; x++) weights.push(Math.fround(1 / cell));
    if (end - high > 1e-3) weights.push(Math.fround(Math.min(end - high, 1, cell) / cell));
    return { first, weights };
  });
}

/** Shrink an image by whole numbers. OpenCV rounds the mean of 2 x 2 pixels up, and other means to even numbers. */
function resizeBlocks(image, fx, fy) {
  const width = image.width / fx, height = image.height / fy, share = Math.fround(1 / (fx * fy));
  return mapPlanes(image, width, height, (plane) => {
    const out = new Uint8Array(width * height);
    for (let j = 0; j < height; j++) {
      for (let i = 0; i < width; i++) {
        let sum = 0;
        for (let y = j * fy; y < (j + 1) * fy; y++) {
          for (let x = i * fx, at = y * image.width + x; x < (i + 1) * fx; x++, at++) sum += plane[at];
        }
        out[j * width + i] = fx === 2 && fy === 2 ? (sum + 2) >> 2 : roundEven(Math.fround(sum * share));
      }
    }
    return out;
  });
}

/** Shrink an image by averaging the area of each output pixel, as OpenCV's INTER_AREA does. */
export function resizeArea(image, width, height) {
  const fx = image.width / width, fy = image.height / height;
  if (Number.isInteger(fx) && Number.isInteger(fy)) return resizeBlocks(image, fx, fy);
  const columns = areaFilters(image.width, width), rows = areaFilters(image.height, height);
  return mapPlanes(image, width, height, (plane) => {
    const wide = new Float32Array(width * image.height);
    for (let y = 0; y < image.height; y++) {
      for (let x = 0; x < width; x++) {
        const { first, weights } = columns[x];
        let sum = 0;
        for (let k = 0, at = y * image.width + first; k < weights.length; k++, at++) {
          sum = Math.fround(sum + Math.fround(plane[at] * weights[k]));
        }
        wide[y * width + x] = sum;
      }
    }
    const out = new Uint8Array(width * height), line = new Float32Array(width);
    for (let y = 0; y < height; y++) {
      const { first, weights } = rows[y];
      line.fill(0);
      weights.forEach((weight, k) => {
        for (let x = 0, at = (first + k) * width; x < width; x++, at++) line[x] += Math.fround(wide[at] * weight);
      });
      for (let x = 0; x < width; x++) out[y * width + x] = roundEven(line[x]);
    }
    return out;
  });
}

/**
 * Sample a size x size image bilinearly: the output's pixel (x, y) is the input's [a x + b y + c, d x + e y + f], with
 * a pixel's center at its integer, as in OpenCV's warpAffine. Pixels outside the image are black.
 */
export function warp(image, [[a, b, c], [d, e, f]], size) {
  const { width, height } = image, steps = 1 << WARP_BITS, fine = 1024;
  return mapPlanes(image, size, size, (plane) => {
    const pixel = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : plane[y * width + x]);
    const out = new Uint8Array(size * size);
    for (let y = 0; y < size; y++) {
      const startX = roundEven((b * y + c) * fine) + fine / steps / 2, startY = roundEven((e * y + f) * fine) + fine / steps / 2;
      for (let x = 0; x < size; x++) {
        const atX = (startX + roundEven(a * x * fine)) >> WARP_BITS, atY = (startY + roundEven(d * x * fine)) >> WARP_BITS;
        const left = atX >> WARP_BITS, top = atY >> WARP_BITS, fx = atX & (steps - 1), fy = atY & (steps - 1);
        const sum = (steps - fy) * ((steps - fx) * pixel(left, top) + fx * pixel(left + 1, top))
          + fy * ((steps - fx) * pixel(left, top + 1) + fx * pixel(left + 1, top + 1));
        out[y * size + x] = (sum + 512) >> 10;
      }
    }
    return out;
  });
}
