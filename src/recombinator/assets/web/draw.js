// Draw objects on a canvas, in the colors of recombinator.predict.drawing.

const LOW = [213, 94, 0], HIGH = [0, 158, 115]; // confidence 0 and 1, for the color-blind too (Okabe, Ito)
const BOX = 'rgb(86 180 233)', LINE = 'rgb(240 228 66 / 0.8)';
const FEW = 10; // up to this number of keypoints there is room for larger markers
const SMALLEST = 1.5, SMALLEST_OF_FEW = 3.5; // radius in pixels of the screen

export const color = (confidence) => `rgb(${LOW.map((v, i) => Math.round(v + (HIGH[i] - v) * confidence)).join(' ')})`;

export const legendColors = () => `linear-gradient(to right, ${color(0)}, ${color(1)})`;

/**
 * Draw a picture and its objects.
 *
 * scale: pixels of the canvas per pixel of the picture. fine: pixels of the canvas per pixel of the screen.
 */
export function draw(context, picture, objects, lines, scale, fine) {
  const { canvas } = context;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  for (const object of objects) {
    const side = object.box[2] * scale, few = object.points.length <= FEW;
    const radius = Math.max((few ? SMALLEST_OF_FEW : SMALLEST) * fine, few ? 1.8 + side / 160 : 0.8 + side / 190);
    const points = object.points.map(([x, y]) => [x * scale, y * scale]);
    context.lineWidth = Math.max(1.8 * fine, side / 300);
    drawBox(context, object, scale);
    context.strokeStyle = LINE;
    for (const line of lines) {
      context.beginPath();
      line.forEach((k) => context.lineTo(...points[k]));
      context.stroke();
    }
    points.forEach(([x, y], k) => {
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = color(object.confidence[k]);
      context.fill();
      context.strokeStyle = 'white';
      context.lineWidth = radius / 4;
      context.stroke();
    });
  }
}

function drawBox(context, { box: [x, y, side], angle }, scale) {
  context.save();
  context.strokeStyle = BOX;
  context.translate((x + side / 2) * scale, (y + side / 2) * scale);
  context.rotate((angle * Math.PI) / 180);
  context.strokeRect((-side / 2) * scale, (-side / 2) * scale, side * scale, side * scale);
  context.restore();
}
