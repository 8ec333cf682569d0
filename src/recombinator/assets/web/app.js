// The page: images, folders, videos and the webcam in; points on a canvas, a table and files out.

import { draw, legendColors } from './draw.js';
import {
  Unusable, decoded, droppedFiles, imagesOnly, isVideo, nameOf, nextFrame, openCamera, playing, saveFile, stopped,
} from './media.js';
import { asCsv, asJson } from './output.js';

const CANVAS = 1600; // longest side of the canvas in pixels
const RECENT = 30; // frames over which the rate is measured

const $ = (id) => document.getElementById(id);
const context = $('canvas').getContext('2d');
let about = null; // the content of model.json
let records = []; // see output.js; those of images also have their `source`, a File
let current = -1; // the record that is shown, among those of images
let session = 0; // a new one stops the work of the one before

// ---- the worker -----------------------------------------------------------------------------------------------------

let worker = null, waiting = new Map(), requests = 0;

/** Start a worker, and load the model in it. */
function startWorker(gpu) {
  worker?.terminate();
  waiting = new Map();
  worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data.ready) resolve(data);
      else if (data.error && data.id === undefined) reject(new Error(data.error));
      else {
        const request = waiting.get(data.id);
        waiting.delete(data.id);
        if (data.error) request?.reject(new Error(data.error));
        else request?.resolve(data);
      }
    };
    worker.onerror = (event) => reject(new Error(event.message || 'the worker cannot be started'));
    worker.postMessage({ gpu });
  });
}

/** Predict a bitmap, which is handed over and comes back with the result. */
function predict(bitmap, options = {}) {
  const id = requests++;
  worker.postMessage({ id, bitmap, ...options }, [bitmap]);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

async function startModel(gpu) {
  say(`Loading the model for the ${gpu ? 'GPU' : 'CPU'} …`);
  const ready = await startWorker(gpu);
  ({ about } = ready);
  document.title = `${about.name}: keypoints in the browser`;
  $('title').textContent = about.name;
  $('example').hidden = !about.example;
  const count = about.keypoints.names.length;
  say(`Ready: ${count} ${count === 1 ? 'keypoint' : 'keypoints'}, on the ${ready.provider}.`);
}

// ---- what the page says ---------------------------------------------------------------------------------------------

function say(text) {
  $('status').textContent = text;
}

function complain(text) {
  $('error').hidden = !text;
  $('error').textContent = text;
}

const objects = (n) => `${n} ${n === 1 ? 'object' : 'objects'}`;
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** Draw a result, and describe it in words. */
function show({ bitmap, width, height, objects: found }, name) {
  const { canvas } = context, scale = Math.min(1, CANVAS / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.hidden = false;
  $('hint').hidden = true;
  $('legend').hidden = false;
  $('view').classList.add('full');
  draw(context, bitmap, found, about.keypoints.lines, scale, canvas.width / (canvas.clientWidth || canvas.width));
  const confidence = found.length ? `, mean confidence ${mean(found.flatMap((one) => one.confidence)).toFixed(2)}` : '';
  canvas.setAttribute('aria-label', `${name}: ${objects(found.length)}${confidence}`);
}

function fillTable({ objects: found }) {
  $('table').hidden = !found.length;
  $('rows').replaceChildren(...found.flatMap((one, i) => about.keypoints.names.map((name, k) => {
    const row = document.createElement('tr');
    const cells = [one.number ?? i + 1, name, ...one.points[k].map((v) => v.toFixed(1)), one.confidence[k].toFixed(3)];
    row.append(...cells.map((text) => Object.assign(document.createElement('td'), { textContent: text })));
    return row;
  })));
}

const PARTS = ['pixels', 'finder', 'crop', 'localizer'];
const partsOf = (times) => PARTS.filter((part) => part in times).map((part) => `${part} ${times[part].toFixed(1)}`).join(', ');

function update() {
  const images = records.filter((record) => record.source);
  $('pages').hidden = images.length < 2;
  $('page').textContent = `${current + 1} of ${images.length}`;
  $('csv').disabled = $('json').disabled = !records.length;
}

// ---- work -----------------------------------------------------------------------------------------------------------

/** Run something until it ends or another run begins; errors become sentences. */
async function run(work) {
  const own = ++session, alive = () => own === session;
  complain('');
  records = [];
  current = -1;
  $('table').hidden = true;
  $('stop').disabled = false;
  update();
  try {
    await work(alive);
  } catch (error) {
    if (alive()) complain(error instanceof Unusable ? error.message : `The model cannot be run: ${error.message}.`);
  }
  if (!alive()) return;
  $('stop').disabled = true;
  update();
}

const record = (file, { width, height, objects: found }) => ({ file, width, height, objects: found });

async function runFiles(files, alive) {
  const unusable = [];
  for (const [i, file] of files.entries()) {
    if (!alive()) return;
    say(`${nameOf(file)} (${i + 1} of ${files.length}) …`);
    try {
      if (isVideo(file)) await runVideo(await playing(file), nameOf(file), alive);
      else await runImage(file, alive);
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      unusable.push(error.message);
      complain(unusable.slice(0, 5).join(' ') + (unusable.length > 5 ? ` And ${unusable.length - 5} more.` : ''));
    }
  }
  const total = records.reduce((sum, one) => sum + one.objects.length, 0);
  const unit = records.some((one) => one.frame !== undefined) ? 'frames' : 'images';
  if (alive()) say(records.length === 1 ? `${records[0].file}: ${objects(total)}.` : `${records.length} ${unit}, ${objects(total)} in them.`);
}

async function runImage(file, alive) {
  const result = await predict(await decoded(file));
  if (alive()) {
    records.push({ ...record(nameOf(file), result), source: file });
    current = records.filter((one) => one.source).length - 1;
    show(result, nameOf(file));
    fillTable(result);
    $('rate').textContent = `${result.times.total.toFixed(0)} ms: ${partsOf(result.times)}`;
    update();
  }
  result.bitmap.close();
}

/** Show a record of an image again. */
async function visit(step) {
  const images = records.filter((one) => one.source), next = current + step;
  if (!images[next]) return;
  current = next;
  const one = images[next], bitmap = await decoded(one.source);
  show({ ...one, bitmap }, one.file);
  fillTable(one);
  bitmap.close();
  update();
  say(`${one.file}: ${objects(one.objects.length)}.`);
}

async function runVideo(video, name, alive) {
  const ends = [performance.now()];
  let frame = 0, last = null;
  try {
    for (;;) {
      const seconds = await nextFrame(video);
      if (seconds === null || !alive()) break;
      const result = await predict(await createImageBitmap(video), { video: true, restart: frame === 0 });
      if (!alive()) break;
      last = record(name, result);
      records.push({ ...last, frame, seconds: Number(seconds.toFixed(4)) });
      show(result, name);
      result.bitmap.close();
      ends.push(performance.now());
      if (ends.length > RECENT + 1) ends.shift();
      const rate = (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]);
      $('rate').textContent = `${rate.toFixed(1)} frames per second; ms: ${partsOf(result.times)}`;
      frame += 1;
    }
  } finally {
    stopped(video);
  }
  if (last) fillTable(last);
}

async function runCamera(alive) {
  $('camera').setAttribute('aria-pressed', 'true');
  try {
    say('The webcam starts …');
    const video = await playing(await openCamera());
    say('The webcam is on. Stop with Esc.');
    await runVideo(video, 'webcam', alive);
  } finally {
    $('camera').setAttribute('aria-pressed', 'false');
  }
}

async function runExample(alive) {
  const answer = await fetch(about.example);
  const blob = await answer.blob();
  await runFiles([new File([blob], about.example, { type: blob.type })], alive);
}

function stop() {
  session += 1;
  $('stop').disabled = true;
  const total = records.reduce((sum, one) => sum + one.objects.length, 0);
  say(`Stopped. ${records.length} results, ${objects(total)} in them.`);
  update();
}

// ---- what the user does ---------------------------------------------------------------------------------------------

function choose(files) {
  if (!about || !files.length) return;
  run((alive) => runFiles(files, alive));
}

function listen() {
  $('files').onchange = (event) => {
    choose([...event.target.files]);
    event.target.value = ''; // the same file can be chosen again
  };
  $('folder').onchange = (event) => {
    const files = imagesOnly(event.target.files);
    if (files.length) choose(files);
    else complain('The folder holds no image or video.');
    event.target.value = '';
  };
  $('camera').onclick = () => ($('camera').getAttribute('aria-pressed') === 'true' ? stop() : about && run(runCamera));
  $('example').onclick = () => run(runExample);
  $('stop').onclick = stop;
  $('previous').onclick = () => visit(-1);
  $('next').onclick = () => visit(1);
  $('csv').onclick = () => saveFile('points.csv', asCsv(plain(), about), 'text/csv');
  $('json').onclick = () => saveFile('points.json', asJson(plain(), about), 'application/json');
  $('processor').onchange = (event) => {
    session += 1;
    startModel(event.target.value === 'gpu').catch(useCpu);
  };
  document.ondragover = (event) => {
    event.preventDefault();
    $('view').classList.add('over');
  };
  document.ondragleave = () => $('view').classList.remove('over');
  document.ondrop = async (event) => {
    event.preventDefault();
    $('view').classList.remove('over');
    const files = await droppedFiles(event.dataTransfer);
    if (files.length) choose(files);
    else complain('There is no image or video in what was dropped.');
  };
  document.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLSelectElement) return;
    if (event.key === 'o') $('files').click();
    if (event.key === 'ArrowLeft') visit(-1);
    if (event.key === 'ArrowRight') visit(1);
    if (event.key === 'Escape' && !$('stop').disabled) stop();
  };
}

const plain = () => records.map(({ source, ...rest }) => rest);

function useCpu(error) {
  $('processor').value = 'cpu';
  startModel(false).then(() => complain(`The GPU cannot be used (${error.message}); the model runs on the CPU.`), fail);
}

function fail(error) {
  say('');
  complain(`The model cannot be loaded: ${error.message}.`);
}

$('colors').style.background = legendColors();
listen();
startModel(false).then(async () => {
  $('processors').hidden = !(about.gpu && await navigator.gpu?.requestAdapter());
  if (location.hash === '#example' && about.example) run(runExample);
}, fail);
