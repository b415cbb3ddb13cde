// The wave of a sound beneath its player, with the moment that is played; a click plays from there.

import { make } from "./dom.js";

const WIDTH = 260, HEIGHT = 48, RATE_HZ = 16_000;

// Adds it after a player; files without sound get none.
export async function addWave(player, file) {
  const levels = await peaks(file);
  if (!levels) return;
  // The player's own controls serve keyboards and screen readers.
  const canvas = make("canvas", { className: "wave", width: WIDTH, height: HEIGHT, ariaHidden: "true" });
  const draw = () => paint(canvas, levels, player.duration ? player.currentTime / player.duration : 0);
  const follow = () => {
    draw();
    if (!player.paused && canvas.isConnected) requestAnimationFrame(follow);
  };
  for (const event of ["play", "seeked", "loadedmetadata"]) player.addEventListener(event, follow);
  canvas.onclick = (event) => {
    if (player.duration) player.currentTime = (event.offsetX / canvas.clientWidth) * player.duration;
  };
  player.after(canvas);
  follow();
}

// The largest level of each column, in 0..1; null where there is no sound, or silence alone.
async function peaks(file) {
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await file.arrayBuffer());
  } catch {
    return null;
  }
  const samples = sound.getChannelData(0), size = samples.length / WIDTH;
  const levels = Array.from({ length: WIDTH }, (_, column) => {
    let most = 0;
    for (let n = Math.floor(column * size); n < (column + 1) * size; n += 1) most = Math.max(most, Math.abs(samples[n] ?? 0));
    return most;
  });
  return levels.some((level) => level > 0) ? levels : null;
}

function paint(canvas, levels, place) {
  const colours = getComputedStyle(canvas), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, WIDTH, HEIGHT);
  levels.forEach((level, column) => {
    pen.fillStyle = column < place * WIDTH ? colours.getPropertyValue("--mark") : colours.getPropertyValue("--soft");
    const height = Math.max(level * HEIGHT, 1);
    pen.fillRect(column, (HEIGHT - height) / 2, 1, height);
  });
}
