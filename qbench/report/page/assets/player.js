// Several videos on one clock. A frame is drawn only once every video has it, and then in all at
// once, so they are never a frame apart: not after a jump, and not while they play.

import { Frames } from "./frames.js";

const BLINK = 600; // ms that each of two videos is seen

/** Events: "frame", "state", "fault". */
export class Player extends EventTarget {
  constructor() {
    super();
    this.tracks = [];
    this.count = 0;
    this.fps = 8;
    this.at = 0; // the frame that is shown
    this.speed = 1;
    this.loop = true;
    this.playing = false;
    this.mode = "side";
    this.gain = 8;
    this.wipe = 0.5;
    this.second = false; // which of two a blink shows
    this.generation = 0;
  }

  /** tracks: [{clip, canvas, against}]; against: the track that a cell is compared with, or null. */
  load(tracks, fps) {
    const before = new Map(this.tracks.map((track) => [track.clip, track.frames]));
    this.tracks = tracks.map((track) => ({ ...track, frames: before.get(track.clip) ?? new Frames(track.clip, fps), shown: null }));
    const still = new Set(this.tracks.map((track) => track.frames));
    for (const frames of before.values()) if (!still.has(frames)) frames.close();
    this.fps = fps;
    this.count = tracks.length ? Math.min(...tracks.map((track) => track.clip.frames)) : 0;
    this.generation += 1;
    this.start = performance.now() - (1000 * this.at) / (fps * this.speed);
    return this.show(Math.min(this.at, Math.max(0, this.count - 1))).then(() => this.ahead());
  }

  /** Draws frame k in all cells once all have it; only the last of several calls draws. */
  async show(k) {
    if (!this.count) return;
    const wanted = (this.wanted = Math.max(0, Math.min(this.count - 1, k)));
    const { generation, tracks } = this;
    let found;
    try {
      found = await Promise.all(tracks.map((track) => track.frames.frame(wanted)));
    } catch (error) {
      this.pause();
      this.dispatchEvent(new CustomEvent("fault", { detail: error.message }));
      return;
    }
    if (generation !== this.generation || wanted !== this.wanted) return;
    tracks.forEach((track, i) => (track.shown = found[i]));
    this.at = wanted;
    this.draw();
    this.dispatchEvent(new Event("frame"));
  }

  /** Decodes the rest while nothing else is asked for. */
  async ahead() {
    const { generation, tracks, count } = this;
    for (let k = 0; k < count; k += 1) {
      if (generation !== this.generation) return;
      await Promise.all(tracks.map((track) => track.frames.frame(k))).catch(() => {});
    }
  }

  step(by) {
    this.pause();
    return this.show((this.wanted ?? this.at) + by);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    if (this.playing || !this.count) return;
    this.playing = true;
    if (this.at >= this.count - 1) this.at = 0;
    this.start = performance.now() - (1000 * this.at) / (this.fps * this.speed);
    this.dispatchEvent(new Event("state"));
    const tick = async (now) => {
      if (!this.playing) return;
      let k = Math.floor(((now - this.start) / 1000) * this.fps * this.speed);
      if (k >= this.count && !this.loop) {
        await this.show(this.count - 1);
        this.pause();
        return;
      }
      k = ((k % this.count) + this.count) % this.count;
      if (k !== this.at) await this.show(k);
      if (this.playing) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.dispatchEvent(new Event("state"));
  }

  setSpeed(speed) {
    this.speed = speed;
    this.start = performance.now() - (1000 * this.at) / (this.fps * speed);
  }

  setMode(mode) {
    this.mode = mode;
    this.second = false;
    clearInterval(this.blinking);
    if (mode === "blink") this.blinking = setInterval(() => this.flip(), BLINK);
    this.draw();
  }

  flip() {
    this.second = !this.second;
    this.draw();
  }

  draw() {
    for (const track of this.tracks) {
      if (!track.shown || !track.canvas) continue;
      const { canvas, shown } = track;
      if (canvas.width !== shown.width || canvas.height !== shown.height) {
        canvas.width = shown.width;
        canvas.height = shown.height;
      }
      const ctx = canvas.getContext("2d");
      track.tell?.(this.second);
      const other = this.tracks.find((one) => one.id === track.against)?.shown;
      ctx.globalCompositeOperation = "source-over";
      if (!other || this.mode === "side") ctx.drawImage(shown, 0, 0);
      else if (this.mode === "blink") ctx.drawImage(this.second ? shown : other, 0, 0, canvas.width, canvas.height);
      else if (this.mode === "wipe") wipe(ctx, other, shown, this.wipe);
      else difference(ctx, other, shown, this.gain);
    }
  }
}

/** The other video to the left of the edge, this one to the right. */
function wipe(ctx, other, shown, share) {
  const { width, height } = ctx.canvas;
  const edge = Math.round(width * share);
  ctx.drawImage(shown, 0, 0);
  ctx.save();
  ctx.beginPath();
  ctx.rect(0, 0, edge, height);
  ctx.clip();
  ctx.drawImage(other, 0, 0, width, height);
  ctx.restore();
  ctx.fillStyle = "#fff";
  ctx.fillRect(edge - 1, 0, Math.max(1, width / 200), height);
}

/** |other - shown| times gain, a power of two: drawn and never read, which pages from a disk may not. */
function difference(ctx, other, shown, gain) {
  const { width, height } = ctx.canvas;
  ctx.drawImage(other, 0, 0, width, height);
  ctx.globalCompositeOperation = "difference";
  ctx.drawImage(shown, 0, 0);
  ctx.globalCompositeOperation = "lighter";
  for (let times = 1; times < gain; times *= 2) ctx.drawImage(ctx.canvas, 0, 0);
  ctx.globalCompositeOperation = "source-over";
}
