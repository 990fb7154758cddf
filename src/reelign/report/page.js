// One clock for all clips. While it runs, each clip plays by itself and is nudged, or moved, when it strays from the clock;
// while it stands, each clip shows the middle of the clock's frame.
(() => {
  const root = document.getElementById("films");
  if (!root) return;
  const fps = Number(root.dataset.fps), frames = Number(root.dataset.frames), total = frames / fps;
  const videos = [...root.querySelectorAll("video")];
  const [play, back, forward, seek, where, speed] = ["play", "back", "forward", "seek", "where", "speed"].map((id) => document.getElementById(id));
  const visible = new Set();
  const clock = { playing: !matchMedia("(prefers-reduced-motion: reduce)").matches, time: 0, last: null };
  const frame = () => Math.min(frames - 1, Math.floor(clock.time * fps + 1e-6));

  const follow = (video) => {
    if (video.readyState === 0 || video.seeking) return;
    const end = video.duration || total;
    if (!clock.playing) {
      const middle = Math.min((frame() + 0.5) / fps, end - 0.25 / fps);
      if (!video.paused) video.pause();
      if (Math.abs(video.currentTime - middle) > 0.2 / fps) video.currentTime = middle;
      return;
    }
    const behind = Math.min(clock.time, end) - video.currentTime, pace = Number(speed.value);
    if (Math.abs(behind) > 0.5 / fps) video.currentTime = Math.min(clock.time, end);
    video.playbackRate = pace * (1 + Math.max(-0.25, Math.min(0.25, behind * fps)));
    if (video.paused && clock.time < end - 0.5 / fps) video.play().catch(() => {}); // a pause that comes first is no failure
  };
  const show = () => {
    const text = `${frame() + 1} / ${frames}`;
    if (where.textContent !== text) {
      where.textContent = text;
      seek.value = frame();
      seek.setAttribute("aria-valuetext", `frame ${frame() + 1} of ${frames}`);
    }
    for (const video of visible) follow(video);
  };
  const tick = (now) => {
    if (clock.playing && clock.last !== null) clock.time = (clock.time + Number(speed.value) * (now - clock.last) / 1000) % total;
    clock.last = now;
    show();
    requestAnimationFrame(tick);
  };
  const run = (playing) => {
    clock.playing = playing;
    play.textContent = playing ? "Pause" : "Play";
  };
  const go = (number) => {
    run(false);
    clock.time = (((number % frames) + frames) % frames + 0.5) / fps;
  };

  for (const video of videos) {
    // A blob can be sought in every browser, a data address not in all.
    const bytes = Uint8Array.from(atob(video.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    video.preload = "auto";
    video.load();
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else { visible.delete(target); target.pause(); }
    }
  }, { rootMargin: "100px" });
  videos.forEach((video) => watcher.observe(video));
  play.onclick = () => run(!clock.playing);
  back.onclick = () => go(frame() - 1);
  forward.onclick = () => go(frame() + 1);
  seek.oninput = () => go(Number(seek.value));
  run(clock.playing);
  requestAnimationFrame(tick);
})();
