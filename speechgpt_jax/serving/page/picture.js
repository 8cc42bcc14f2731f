// Picture of an answer: its waveform, and below its sound a bar for each unit, coloured by its number.

// `seconds` are the lengths of the first units; those without one are not drawn yet.
export function draw(canvas, samples, rate, units, seconds) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale, canvas.height = height * scale;
  const g = canvas.getContext("2d");
  g.scale(scale, scale);
  g.clearRect(0, 0, width, height);
  const length = samples.length / rate;
  const scaleOfTime = width / Math.max(length, seconds.reduce((a, b) => a + b, 0), 1);
  drawWave(g, samples, length * scaleOfTime, height - 36);
  drawUnits(g, units, seconds, scaleOfTime, height);
}

function drawWave(g, samples, width, height) {
  g.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  const step = samples.length / Math.max(width, 1);
  for (let x = 0; x < width; x++) {
    let most = 0;
    for (let i = Math.floor(x * step); i < (x + 1) * step && i < samples.length; i++) {
      most = Math.max(most, Math.abs(samples[i]));
    }
    const size = Math.max(1, most * height);
    g.fillRect(x, (height - size) / 2, 1, size);
  }
}

function drawUnits(g, units, seconds, scaleOfTime, height) {
  let start = 0;
  seconds.forEach((length, i) => {
    g.fillStyle = `hsl(${(units[i] * 137.5) % 360} 60% 50%)`;
    g.fillRect(start, height - 28, Math.max(1, length * scaleOfTime - 1), 24);
    start += length * scaleOfTime;
  });
}
