// From images to keypoints in image coordinates, as recombinator.predict.predictor does in Python.

import { apply, cropObject, rotation } from './crop.js';
import { detect, search as searchObjects } from './finder.js';

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const center = (points) => [mean(points.map((p) => p[0])), mean(points.map((p) => p[1]))];

/**
 * Predict the keypoints of all objects in images.
 *
 * about: the content of model.json.
 * networks: {locate, find}. locate: async (Uint8Array of N crops, [N, channels, size, size]) => {points, within}, flat
 * arrays of N x K x 2 and N x K x 5. find: as `run` in finder.js, or null.
 *
 * An object is {points, confidence, box, angle, inside}, in pixels of the image: K x [x, y], K probabilities, the square
 * [x, y, side] that the network saw, its rotation about its center in degrees, and K booleans.
 */
export class Predictor {
  constructor(about, networks) {
    this.about = about;
    this.networks = networks;
    this.times = {}; // milliseconds since the last reset, by part
  }

  /** Predict all objects of one image (ImageData), largest first. boxes: [x, y, width, height], in place of a finder. */
  async predict(image, { boxes = null, search = true } = {}) {
    const { about } = this, { finder } = about;
    if (boxes?.length) return (await this.#fromBoxes(image, boxes.map(asDetection), about.crop.fromDetector, about.passes, true)).filter(Boolean);
    if (!finder) {
      const whole = 0.8 * Math.min(image.width, image.height);
      const box = { x: image.width / 2, y: image.height / 2, side: whole, angle: 0 };
      return distinct(await this.#fromBoxes(image, [box], about.crop.fromDetector, about.passes, true), about.sameObject);
    }
    let began = performance.now();
    const stages = search ? searchObjects(image, finder, this.networks.find) : [detect(image, finder, this.networks.find)];
    for await (const detections of stages) {
      this.#spent('finder', began);
      const found = (await this.#fromBoxes(image, detections, finder.relation, about.passes, false)).filter(Boolean);
      if (found.length) return distinct(found, about.sameObject);
      began = performance.now();
    }
    return [];
  }

  /** Predict objects again whose points are roughly known, for example from the last frame of a video. */
  async follow(image, objects) {
    const found = await this.#doubted(
      image, await this.#refine(image, objects.map((one) => one.points), objects.map((one) => one.angle)),
    );
    const numbered = found.map((one, i) => one && { ...one, number: objects[i].number });
    return distinct(numbered.filter((one) => this.#isSure(one)), this.about.sameObject);
  }

  #isSure(object) {
    return object !== null && mean(object.confidence) >= this.about.leastConfidence;
  }

  #spent(part, began) {
    this.times[part] = (this.times[part] ?? 0) + performance.now() - began;
  }

  async #fromBoxes(image, detections, relation, passes, certain) {
    if (!detections.length) return [];
    const angles = detections.map((d) => d.angle);
    let found = await this.#refine(image, detections.map((d) => typicalPoints(d, this.about.template, relation)), angles);
    // two pieces of evidence, the confidence of the points and the finder's score: their log-odds are added
    const probable = (objects, least) => objects.map((one, i) => (
      certain || (one && both(mean(one.confidence), detections[i].score) >= least) ? one : null));
    const { leastConfidence: least, leastBefore } = this.about;
    if (this.about.crop.whole) passes = 1;
    for (let i = 1; i < passes; i++) {
      found = probable(found, leastBefore);
      const again = await this.#refine(image, found.map((one) => one?.points ?? null), angles);
      found = again.map((one, k) => one ?? (certain ? found[k] : null));
    }
    found = probable(found, least);
    return this.#doubted(image, passes > 1 ? await this.#atOwnAngles(image, found) : found);
  }

  /** Predict those objects again whose points are `turned` in their crops. */
  async #atOwnAngles(image, found) {
    const { turned } = this.about, off = found.map((one) => (one ? this.#rotation(one) : 0));
    const wanted = found.map((one, i) => one && !one.moved && Math.abs(off[i]) > turned);
    const again = await this.#refine(
      image, found.map((one, i) => (wanted[i] ? one.points : null)), found.map((one, i) => one && one.angle + off[i]),
    );
    return found.map((one, i) => again[i] ?? one);
  }

  /**
   * Set the confidence to 0 where the border of the image has decided the answer: where a point is outside the image;
   * and where the crop rule moved the square into the image, and the point changes by more than the confidence's own
   * distance once the square is where the points ask for it.
   */
  async #doubted(image, found) {
    const { size, sureReach } = this.about, moved = found.filter((one) => one?.moved);
    const again = await this.#refine(image, moved.map((one) => one.points), moved.map((one) => one.angle), true);
    return found.map((one) => {
      const other = one && again[moved.indexOf(one)];
      const confidence = one?.confidence.map((value, k) => {
        const near = !other || distance(one.points[k], other.points[k]) * size <= sureReach * one.box[2];
        return one.inside[k] && near ? value : 0;
      });
      return one && { ...one, confidence };
    });
  }

  /** Rotation of an object's points against its crop, in degrees from -180 to 180. */
  #rotation({ points, angle }) {
    const { template } = this.about, [a, b] = [center(template), center(points)];
    let along = 0, across = 0;
    template.forEach(([x, y], k) => {
      const [p, q] = [x - a[0], y - a[1]], [u, v] = [points[k][0] - b[0], points[k][1] - b[1]];
      along += p * u + q * v;
      across += p * v - q * u;
    });
    return ((((Math.atan2(across, along) * 180) / Math.PI - angle + 180) % 360) + 360) % 360 - 180;
  }

  /** Crop around rough points and predict all crops in one batch; null where the points leave no crop. */
  async #refine(image, points, angles, free = false) {
    const { crop: rule, size, channels, keypoints, sure } = this.about;
    let began = performance.now();
    const crops = points.map((p, i) => p && cropObject(image, p, rule, size, channels, angles[i], free));
    const used = crops.filter(Boolean);
    if (!used.length) return crops;
    const data = new Uint8Array(used.length * channels * size * size);
    used.forEach((crop, n) => crop.planes.forEach((plane, c) => data.set(plane, (n * channels + c) * size * size)));
    this.#spent('crop', began);
    began = performance.now();
    const output = await this.networks.locate(data, [used.length, channels, size, size]);
    this.#spent('localizer', began);
    const count = keypoints.names.length, radii = output.within.length / (used.length * count);
    return crops.map((crop, i) => {
      if (!crop) return null;
      const first = used.indexOf(crop) * count;
      const found = keypoints.names.map((_, k) => apply(crop.toImage, output.points.slice(2 * (first + k), 2 * (first + k) + 2)));
      const [x, y] = apply(crop.toImage, [size / 2, size / 2]), side = crop.pixel * size;
      return {
        points: found,
        confidence: keypoints.names.map((_, k) => output.within[(first + k) * radii + sure]),
        box: [x - side / 2, y - side / 2, side],
        angle: angles[i],
        moved: crop.moved,
        inside: found.map(([px, py]) => px >= 0 && py >= 0 && px <= image.width && py <= image.height),
      };
    });
  }
}

/** The probability from two independent ones. */
export function both(confidence, score) {
  const yes = confidence * score, no = (1 - confidence) * (1 - score);
  return yes + no ? yes / (yes + no) : confidence;
}

const asDetection = ([x, y, width, height]) => ({
  x: x + width / 2, y: y + height / 2, side: Math.max(width, height), angle: 0,
});

/** Typical points of an object in a detected square; relation: see model.json. */
export function typicalPoints({ x, y, side, angle }, template, [scale, lower]) {
  const turn = rotation(angle);
  return template.map(([u, v]) => {
    const [dx, dy] = apply(turn, [side * scale * (u - 0.5), side * (scale * (v - 0.5) + lower)]);
    return [x + dx, y + dy];
  });
}

/** Drop each object that coincides with a more confident one, and sort the rest by size, largest first. */
export function distinct(objects, same) {
  const kept = [];
  for (const one of objects.filter(Boolean).sort((a, b) => mean(b.confidence) - mean(a.confidence))) {
    const [xs, ys] = [0, 1].map((i) => one.points.map((p) => p[i]));
    const extent = Math.hypot(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys));
    if (kept.every((other) => mean(one.points.map((p, k) => distance(p, other.points[k]))) > same * extent)) kept.push(one);
  }
  return kept.sort((a, b) => b.box[2] - a.box[2]);
}

/** Follow objects through the frames of a video, under one number each: the last points give the next crop. */
export class Tracker {
  constructor(predictor, every) {
    this.predictor = predictor;
    this.every = every; // frames between two runs of the finder
    this.restart();
  }

  restart() {
    this.objects = [];
    this.frames = 0;
    this.count = 0;
  }

  async update(image) {
    const { about } = this.predictor;
    if (about.crop.whole || !about.finder) return this.predictor.predict(image);
    this.objects = this.objects.length ? await this.predictor.follow(image, this.objects) : [];
    if (!this.objects.length || this.frames % this.every === 0) {
      const found = await this.predictor.predict(image, { search: false });
      for (const one of found) {
        const known = this.objects.find((o) => sameObject(o, one));
        if (known) known.angle = one.angle; // it may have turned since it was found
        else this.objects.push({ ...one, number: ++this.count });
      }
    }
    this.frames += 1;
    return this.objects;
  }
}

const sameObject = (a, b) => distance(center(a.points), center(b.points)) < 0.4 * Math.min(a.box[2], b.box[2]);
