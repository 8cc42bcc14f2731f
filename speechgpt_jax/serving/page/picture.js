// Picture of an answer: its waveform, and below it a bar for each unit, coloured by its number.

const UNIT_SECONDS = 0.02; // One frame: the shortest time of a reduced unit.

export function draw(canvas, samples, units, rate) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale, canvas.height = height * scale;
  const g = canvas.getContext("2d");
  g.scale(scale, scale);
  g.clearRect(0, 0, width, height);
  const seconds = Math.max(samples.length / rate, units.length * UNIT_SECONDS, 1);
  drawWave(g, samples, (samples.length / rate / seconds) * width, height - 36);
  drawUnits(g, units, samples.length ? (samples.length / rate / seconds) * width : width, height);
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

function drawUnits(g, units, width, height) {
  const size = width / Math.max(units.length, 1);
  units.forEach((unit, i) => {
    g.fillStyle = `hsl(${(unit * 137.5) % 360} 60% 50%)`;
    g.fillRect(i * size, height - 28, Math.max(1, size - 1), 24);
  });
}
