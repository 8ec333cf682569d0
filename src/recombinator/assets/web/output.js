// Results as files: the fields of `recombinator predict` and `recombinator track`.
//
// A record is {file, width, height, objects}, and for a frame of a video also {frame, seconds}.

const rounded = (value, digits) => Number(value.toFixed(digits));

function asObject(object, names, number) {
  return {
    face: object.number ?? number,
    box: object.box.map((v) => rounded(v, 2)),
    angle: rounded(object.angle, 2),
    confidence: rounded(object.confidence.reduce((a, b) => a + b, 0) / names.length, 4),
    keypoints: names.map((name, k) => ({
      name,
      x: rounded(object.points[k][0], 2),
      y: rounded(object.points[k][1], 2),
      confidence: rounded(object.confidence[k], 4),
      inside: object.inside[k],
    })),
  };
}

export function asJson(records, about) {
  const photographs = records.map(({ objects, ...record }) => ({
    ...record, faces: objects.map((one, i) => asObject(one, about.keypoints.names, i + 1)),
  }));
  return `${JSON.stringify({ weights: about.name, photographs }, null, 1)}\n`;
}

const cell = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

export function asCsv(records, about) {
  const moving = records.some((record) => record.frame !== undefined);
  const rows = [['file', ...(moving ? ['frame', 'seconds'] : []), 'face', 'keypoint', 'x', 'y', 'confidence', 'inside']];
  for (const { file, frame = '', seconds = '', objects } of records) {
    objects.forEach((object, i) => {
      const { face, keypoints } = asObject(object, about.keypoints.names, i + 1);
      for (const { name, x, y, confidence, inside } of keypoints) {
        rows.push([file, ...(moving ? [frame, seconds] : []), face, name, x, y, confidence, Number(inside)]);
      }
    });
  }
  return rows.map((row) => `${row.map(cell).join(',')}\n`).join('');
}
