// The worker in which finder and localizer run, so that the page stays responsive.
//
// It receives {gpu} once, then {bitmap, id, video, restart}; it answers {ready, about, provider}, then {id, bitmap,
// width, height, objects, times}, or {error} where something fails.

import { Predictor, Tracker } from './predictor.js';

let predictor, tracker;

async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status})`);
  return answer;
}

async function start(gpu) {
  const about = await (await fetched('model.json')).json();
  const runtime = new URL(about.runtime, import.meta.url);
  const ort = await import(new URL(gpu ? 'ort.webgpu.min.mjs' : 'ort.wasm.min.mjs', runtime));
  ort.env.wasm.wasmPaths = runtime.href;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = 'error';
  const options = { executionProviders: gpu ? ['webgpu', 'wasm'] : ['wasm'], graphOptimizationLevel: 'all' };
  const open = async (name) => ort.InferenceSession.create(new Uint8Array(await (await fetched(name)).arrayBuffer()), options);
  const localizer = await open('model.onnx'), finder = about.finder && await open('finder.onnx');
  predictor = new Predictor(about, {
    async locate(crops, shape) {
      const { points, within } = await localizer.run({ image: new ort.Tensor('uint8', crops, shape) }, ['points', 'within']);
      return { points: points.data, within: within.data };
    },
    async find(pixels, shape) {
      const { maps } = await finder.run({ image: new ort.Tensor('float32', pixels, shape) });
      return { data: maps.data, rows: maps.dims[2], columns: maps.dims[3] };
    },
  });
  tracker = new Tracker(predictor, about.detectEvery);
  postMessage({ ready: true, about, provider: gpu ? 'GPU' : 'CPU' });
}

let canvas = null, context = null;

function pixelsOf(bitmap) {
  if (canvas?.width !== bitmap.width || canvas?.height !== bitmap.height) {
    canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    context = canvas.getContext('2d', { willReadFrequently: true });
  }
  context.globalCompositeOperation = 'copy';
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

async function predict({ bitmap, id, video, restart }) {
  const began = performance.now();
  predictor.times = {};
  const image = pixelsOf(bitmap), pixels = performance.now() - began;
  if (restart) tracker.restart();
  const objects = video ? await tracker.update(image) : await predictor.predict(image);
  const times = { pixels, ...predictor.times, total: performance.now() - began };
  postMessage({ id, bitmap, width: image.width, height: image.height, objects, times }, [bitmap]);
}

let queue = Promise.resolve(); // one message after the other

onmessage = ({ data }) => {
  queue = queue.then(() => ('gpu' in data ? start(data.gpu) : predict(data)))
    .catch((error) => postMessage({ error: String(error?.message ?? error), id: data.id }));
};
