// The frames of one video, each by its number. Videos are moved to the middle of a frame and copied
// from there; what was seen stays in memory up to a limit, so that a loop needs no more decoding.

const BUDGET = 384 * 2 ** 20; // bytes of all frames kept
const LATEST = 400; // ms after a jump that its frame is waited for
const kept = new Map(); // canvas -> the video that it belongs to, the least recently used first

export class Frames {
  constructor(clip, fps) {
    this.clip = clip;
    this.fps = fps;
    this.seen = new Map();
    this.queue = Promise.resolve();
    this.video = null;
  }

  /** A canvas with frame k, 0 to clip.frames - 1. Rejects where the browser cannot play the video. */
  frame(k) {
    const known = this.seen.get(k);
    if (known) {
      kept.delete(known);
      kept.set(known, [this, k]);
      return Promise.resolve(known);
    }
    const made = this.queue.then(() => this.seen.get(k) ?? this.taken(k));
    this.queue = made.catch(() => {});
    return made;
  }

  async taken(k) {
    this.video ??= await loaded(this.clip.source);
    await moved(this.video, (k + 0.5) / this.fps, 1 / this.fps);
    const canvas = document.createElement("canvas");
    canvas.width = this.clip.width;
    canvas.height = this.clip.height;
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    this.seen.set(k, canvas);
    kept.set(canvas, [this, k]);
    forget();
    return canvas;
  }

  /** Lets go of the decoder and of everything seen. */
  close() {
    for (const canvas of this.seen.values()) {
      kept.delete(canvas);
      canvas.width = 0;
    }
    this.seen.clear();
    if (this.video) {
      this.video.removeAttribute("src");
      this.video.load();
      this.video = null;
    }
  }
}

function loaded(source) {
  return new Promise((resolve, reject) => {
    const video = document.createElement("video");
    video.muted = true;
    video.playsInline = true;
    video.preload = "auto";
    video.addEventListener("loadeddata", () => resolve(video), { once: true });
    video.addEventListener("error", () => reject(new Error("This browser cannot play the video.")), { once: true });
    video.src = source;
  });
}

/**
 * Moves to the middle of a frame, and waits until it is the one that is copied. That "seeked" has
 * come is not enough: a busy browser still has the frame before it then.
 */
function moved(video, time, length) {
  return new Promise((resolve, reject) => {
    let [seeked, presented, over] = [false, !video.requestVideoFrameCallback, false];
    const done = () => {
      if (!seeked || !presented || over) return;
      over = true;
      resolve();
    };
    const watch = (_, { mediaTime }) => {
      presented ||= Math.abs(mediaTime + length / 2 - time) < length / 2;
      done();
      if (!presented && !over) video.requestVideoFrameCallback(watch);
    };
    video.addEventListener("seeked", () => {
      seeked = true;
      setTimeout(() => { presented = true; done(); }, LATEST); // a frame shown already comes no second time
      done();
    }, { once: true });
    video.addEventListener("error", reject, { once: true });
    if (!presented) video.requestVideoFrameCallback(watch);
    video.currentTime = time;
  });
}

function forget() {
  let size = 0;
  for (const canvas of kept.keys()) size += canvas.width * canvas.height * 4;
  for (const [canvas, [owner, k]] of kept) {
    if (size <= BUDGET) return;
    size -= canvas.width * canvas.height * 4;
    owner.seen.delete(k);
    kept.delete(canvas);
  }
}
