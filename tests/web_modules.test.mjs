// The page's modules on the vectors that Python made: node --test tests/web_modules.test.mjs

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';

const modules = new URL('../src/recombinator/assets/web/', import.meta.url);
const load = (name) => import(new URL(name, modules));
const { cropObject } = await load('crop.js');
const { cutPlanes } = await load('resample.js');
const { asInput, decode, resized, suppressed } = await load('finder.js');
const { typicalPoints } = await load('predictor.js');

const vectors = JSON.parse(readFileSync(new URL('web_vectors.json', import.meta.url)));
const { rules, finder } = vectors;
const bytes = (text) => new Uint8Array(Buffer.from(text, 'base64'));

/** ImageData with the pattern of web_vectors.py. */
function pattern(width, height) {
  const data = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        const wave = Math.floor((x * x * 3 + y * y * 5 + x * y * (c + 1)) / 97) % 256;
        const edge = (Math.floor(x / 9) + Math.floor(y / 7) + c) % 5 === 0;
        data[4 * (y * width + x) + c] = edge ? 255 - wave : wave;
      }
    }
  }
  return { width, height, data };
}

function near(actual, expected, tolerance = 1e-5) {
  const [a, b] = [actual, expected].map((v) => v.flat(3));
  assert.equal(a.length, b.length);
  a.forEach((v, i) => assert.ok(Math.abs(v - b[i]) <= tolerance, `${i}: ${v}, expected ${b[i]}`));
}

/** Pixels may differ by one gray level where a value lies between two levels, in at most `share` of them. */
function samePixels(actual, expected, share) {
  assert.equal(actual.length, expected.length);
  let off = 0;
  actual.forEach((v, i) => {
    assert.ok(Math.abs(v - expected[i]) <= 1, `pixel ${i}: ${v}, expected ${expected[i]}`);
    off += v !== expected[i];
  });
  assert.ok(off <= share * actual.length, `${off} of ${actual.length} pixels differ`);
}

test('gray', () => {
  const { width, height, pixels } = vectors.gray;
  const [gray] = cutPlanes(pattern(width, height), 0, 0, width, height, 1).planes;
  assert.deepEqual(gray, bytes(pixels));
});

for (const one of vectors.crops) {
  const title = `crop ${one.rule}, ${one.width}x${one.height}, size ${one.size}, ${one.channels}, ${one.degrees} degrees${one.free ? ', free' : ''}`;
  test(title, () => {
    const { size, every } = one;
    const crop = cropObject(
      pattern(one.width, one.height), one.points, rules[one.rule], size, one.channels, one.degrees, one.free,
    );
    assert.equal(crop.moved, one.moved);
    near(crop.toImage, one.toImage);
    const seen = [];
    for (const plane of crop.planes) {
      for (let y = 0; y < size; y += every) {
        for (let x = 0; x < size; x += every) seen.push(plane[y * size + x]);
      }
    }
    samePixels(seen, bytes(one.pixels), 0.005);
  });
}

for (const one of vectors.seen) {
  test(`finder input ${one.width}x${one.height} at ${one.side}, ${one.channels}`, () => {
    const image = cutPlanes(pattern(one.width, one.height), 0, 0, one.width, one.height, one.channels);
    const { data, shape } = asInput(resized(image, image, one.side / Math.max(one.width, one.height)), finder);
    assert.deepEqual(shape, one.shape);
    samePixels(Array.from(data).filter((_, i) => i % one.every === 0), bytes(one.pixels), 0.005);
  });
}

test('decoding and suppression', () => {
  const { rows, columns, maps, squares, scores, kept } = vectors.decoded;
  const flat = new Float32Array(bytes(maps).buffer);
  const found = decode(flat, rows, columns, finder);
  const numbers = (list) => list.map((one) => [one.x, one.y, one.side, one.angle]);
  near(numbers(found), squares, 1e-4);
  near(found.map((one) => one.score), scores);
  near(numbers(suppressed(found, finder.same)), kept, 1e-4);
});

test('typical points of detections', () => {
  const { template, relation, squares, points } = vectors.typical;
  near(squares.map(([x, y, side, angle]) => typicalPoints({ x, y, side, angle }, template, relation)), points);
});
