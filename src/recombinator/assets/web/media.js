// Files that are chosen or dropped, and their decoding.

const MOST_PIXELS = 200e6; // as in Python; a canvas of more fails in every browser

export const isVideo = (file) => file.type.startsWith('video/');

/** An error whose message is a sentence for the user. */
export class Unusable extends Error {}

/** The files of a drop, those inside dropped folders too. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), inside = [];
  for (;;) { // a reader gives about a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    inside.push(...some);
  }
  return imagesOnly((await Promise.all(inside.map(filesOf))).flat());
}

/** The images and videos of a folder, sorted by name. */
export const imagesOnly = (files) => [...files].filter((file) => /^(image|video)\//.test(file.type))
  .sort((a, b) => nameOf(a).localeCompare(nameOf(b), undefined, { numeric: true }));

export const nameOf = (file) => file.webkitRelativePath || file.name;

/** Decode an image file. The EXIF orientation is applied, a color profile is not: Python ignores it too. */
export async function decoded(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none',
    });
  } catch {
    throw new Unusable(`${nameOf(file)}: not an image or a video that this browser can read.`);
  }
  const pixels = bitmap.width * bitmap.height;
  if (pixels > MOST_PIXELS) {
    bitmap.close();
    throw new Unusable(`${nameOf(file)}: has ${Math.round(pixels / 1e6)} million pixels; at most ${MOST_PIXELS / 1e6} million can be used.`);
  }
  return bitmap;
}

/** Play a source (a File, or a camera's MediaStream) in a <video> element, without sound. */
export async function playing(source) {
  const video = document.createElement('video');
  video.muted = true;
  video.playsInline = true;
  if (source instanceof File) video.src = URL.createObjectURL(source);
  else video.srcObject = source;
  try {
    await video.play();
  } catch {
    stopped(video);
    throw new Unusable(`${source.name ?? 'The webcam'}: not a video that this browser can play.`);
  }
  return video;
}

export function stopped(video) {
  video.pause();
  video.srcObject?.getTracks().forEach((track) => track.stop());
  if (video.src) URL.revokeObjectURL(video.src);
}

/** Wait for the next frame of a video. Resolves to its time in seconds, or null at the end. */
export function nextFrame(video) {
  return new Promise((resolve) => {
    if (video.ended) resolve(null);
    video.addEventListener('ended', () => resolve(null), { once: true });
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback((_, { mediaTime }) => resolve(mediaTime));
    else requestAnimationFrame(() => resolve(video.currentTime));
  });
}

/** Open a webcam, with a sentence where there is none. */
export async function openCamera() {
  if (!navigator.mediaDevices) throw new Unusable('The webcam needs a page from https:// or localhost.');
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: 'user' } });
  } catch (error) {
    throw new Unusable(error.name === 'NotAllowedError' ? 'The webcam may not be used: allow it in the browser.' : 'No webcam was found.');
  }
}

export function saveFile(name, text, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
