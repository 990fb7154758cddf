// Two clips, one clock, one vote. The server knows which clip is whose; this page never does.
(() => {
  const at = (id) => document.getElementById(id);
  const SPEEDS = [0.25, 0.5, 1, 2];
  const AXES = {
    visual: ["Visual quality", "Sharp, clean, free of flaws."],
    motion: ["Motion quality", "Smooth and true to life."],
    text: ["Matches the words", "Shows all that was asked for."],
    overall: ["Overall", "The one you would keep."],
  };

  // ---- the two videos -------------------------------------------------------------------------------------------
  // What is seen are two canvases. A frame is drawn only when both videos have delivered the frame of that number, and
  // then on both canvases at once, so that no two different frames ever stand side by side. Speeds are trimmed only to
  // let the two deliver at about the same time.
  const player = (() => {
    const DEPTH = 6; // frames that one video may be ahead of the other without one being left out
    const PATIENCE = 2000; // milliseconds until a seek that shows nothing is given up
    const sides = ["left", "right"].map((id) => {
      const [video, canvas] = [at(id).querySelector("video"), at(id).querySelector("canvas")];
      return { video, canvas, brush: canvas.getContext("2d", { alpha: false }), loaded: false, kept: [] };
    });
    let fps = 1, frames = 1, shown = 0, speed = 1, loop = true, playing = false;
    let sought = null; // the seek that is under way: {number, since, next}
    let painted = false; // whether a frame has been shown since the last seek
    let seen = null; // told once, when the first frame of both is there
    const each = (what) => sides.forEach(what);

    // By the time of the callback the video may show a later frame than the one it was called for: the picture itself
    // knows better where the browser tells (secure contexts; Firefox always says 0, and the later of both is right).
    const keep = (side, told) => {
      const { video } = side, picture = window.VideoFrame ? new VideoFrame(video) : video;
      const number = Math.round(Math.max(told, (picture.timestamp ?? 0) / 1e6) * fps);
      if (!sought || sought.number === number || !seeking()) { // not a last frame from before a seek
        const slot = (side.kept[number % DEPTH] ??= { canvas: document.createElement("canvas") });
        resize(slot.canvas, video.videoWidth, video.videoHeight);
        slot.canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0);
        slot.number = number;
        if (both(number)) paint(number);
      }
      picture.close?.();
    };
    const both = (number) => sides.every(({ kept }) => kept[number % DEPTH]?.number === number);
    const seeking = () => sides.some(({ video }) => video.seeking);
    const resize = (canvas, width, height) => {
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    };
    const paint = (number) => {
      each(({ canvas, brush, kept }) => {
        const picture = kept[number % DEPTH].canvas;
        resize(canvas, picture.width, picture.height);
        brush.drawImage(picture, 0, 0);
      });
      [shown, painted] = [number, true];
      tell();
      settle();
    };
    const watch = (side) => side.video.requestVideoFrameCallback((_, { mediaTime }) => {
      watch(side);
      if (side.loaded) keep(side, mediaTime);
    });

    const go = (number) => {
      number = Math.max(0, Math.min(frames - 1, number));
      const now = performance.now();
      if (sought && now - sought.since < PATIENCE) return void (sought.next = number);
      [sought, painted] = [{ number, since: now, next: null }, false];
      each(({ video }) => {
        video.pause();
        video.currentTime = (number + 0.5) / fps;
      });
      if (both(number)) paint(number); // browsers do not always deliver again what they have just delivered
    };
    const settle = () => {
      if (!sought || !painted || seeking()) return;
      const { next } = sought;
      sought = null;
      seen?.();
      seen = null;
      if (next !== null) go(next);
    };
    const fetchStill = () => { // some browsers deliver no frame of a paused video, which shows it nevertheless
      if (!sought || painted || seeking()) return;
      const { number } = sought;
      each((side) => keep(side, number / fps));
    };
    const tick = () => {
      if (!playing) return;
      requestAnimationFrame(tick);
      if (sought && performance.now() - sought.since < PATIENCE) return;
      sought = null;
      if (sides.every(({ video }) => video.ended)) return loop ? go(0) : set(false);
      const lead = sides[0].video.currentTime - sides[1].video.currentTime;
      each(({ video }, index) => {
        const ahead = index ? -lead : lead;
        const rate = speed * (1 - Math.max(-0.2, Math.min(0.2, Math.abs(ahead) * fps < 0.1 ? 0 : ahead)));
        if (Math.abs(video.playbackRate - rate) > 0.005 * speed) video.playbackRate = rate;
        if (ahead > (DEPTH - 2) / fps) video.pause();
        else if (video.paused && !video.ended) video.play().catch(({ name }) => name === "NotAllowedError" && set(false));
      });
    };
    const set = (on) => {
      if (on === playing) return;
      playing = on;
      if (!on) each(({ video }) => video.pause());
      else if (shown >= frames - 1) go(0);
      else go(shown); // both from the same frame, wherever the pause has caught them
      if (on) requestAnimationFrame(tick);
      tell();
    };
    const tell = () => {
      at("frame").value = shown;
      at("frame").setAttribute("aria-valuetext", `frame ${shown + 1} of ${frames}`);
      at("place").textContent = `${shown + 1} / ${frames}`;
      at("play").setAttribute("aria-label", playing ? "Pause" : "Play");
      at("loop").setAttribute("aria-pressed", loop);
      at("speed").value = speed;
    };

    each((side) => {
      watch(side);
      side.video.addEventListener("seeked", () => { settle(); setTimeout(fetchStill, 300); });
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) each(({ video }) => video.pause());
      else if (playing) go(shown);
    });
    return {
      /** Resolves when the first frame of both clips is on screen; `failed` is called when a clip cannot be had. */
      load: (pair, failed) => new Promise((done) => {
        set(false);
        [fps, frames, shown, sought, seen] = [pair.fps, pair.frames, 0, null, done];
        at("frame").max = frames - 1;
        each((side, index) => {
          side.loaded = false;
          side.kept = [];
          side.video.onerror = failed;
          side.video.onloadedmetadata = () => { // phones load no more than that before they are told to seek
            side.loaded = true;
            at("pair").classList.toggle("landscape", side.video.videoWidth > 1.2 * side.video.videoHeight);
            at("pair").classList.toggle("tiny", side.video.videoWidth < 160);
            if (sides.every(({ loaded }) => loaded)) go(0);
          };
          side.video.src = index ? pair.right : pair.left;
          side.video.load();
        });
      }),
      stop: () => set(false),
      play: () => set(true),
      toggle: () => set(!playing),
      step: (by) => { set(false); go((sought?.next ?? sought?.number ?? shown) + by); },
      go: (number) => { set(false); go(number); },
      speed: (to) => { speed = to; tell(); },
      faster: (by) => { speed = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, SPEEDS.indexOf(speed) + by))]; tell(); },
      loop: () => { loop = !loop; tell(); },
    };
  })();

  // ---- the server -----------------------------------------------------------------------------------------------
  const token = decodeURIComponent(location.pathname.split("/").pop());
  class Refused extends Error {
    constructor(answer, words) {
      super(words ?? `The server answered ${answer.status}.`);
      [this.status, this.wait] = [answer.status, Number(answer.headers.get("Retry-After"))];
    }
  }
  const once = async (path, body) => {
    const headers = { Authorization: `Bearer ${token}` };
    if (body) Object.assign(headers, { "Content-Type": "application/json", "X-Reelign": "1" });
    const asked = body ? { method: "POST", body: JSON.stringify(body) } : {};
    const answer = await fetch(path, { ...asked, headers, signal: AbortSignal.timeout(20_000) });
    if (answer.ok) return answer.json();
    const told = await answer.json().catch(() => ({}));
    throw new Refused(answer, told.detail);
  };
  /** Asks until there is an answer. Sending a vote twice is safe: the server keeps one vote on one showing. */
  const ask = async (path, body) => {
    for (let wait = 1; ; wait = Math.min(2 * wait, 30)) {
      try {
        return await once(path, body);
      } catch (error) {
        const refused = error instanceof Refused;
        if (refused && error.status < 500 && error.status !== 429) throw error;
        const seconds = Math.ceil(error.wait || wait);
        const why = refused ? error.message : "The server cannot be reached.";
        say(`${why} ${body ? "Your answers are kept. " : ""}Trying again in ${seconds} s.`, true);
        await pause(seconds);
      }
    }
  };
  const pause = (seconds) => new Promise((done) => {
    at("again").hidden = false;
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      at("again").hidden = true;
      at("again").onclick = null;
      done();
    };
    const timer = setTimeout(end, 1000 * seconds);
    addEventListener("online", end);
    at("again").onclick = end;
  });

  // ---- the vote -------------------------------------------------------------------------------------------------
  const form = at("votes");
  const stored = (store, key, value) => { // browsers may refuse to store anything
    try {
      if (value === undefined) return window[store].getItem(key);
      if (value === null) window[store].removeItem(key);
      else window[store].setItem(key, value);
    } catch { return null; }
  };
  const watched = { // seconds in which both clips could be seen
    sum: 0, since: null,
    start() { this.since ??= document.hidden ? null : performance.now(); },
    stop() { if (this.since !== null) this.sum += performance.now() - this.since; this.since = null; },
    take() { this.stop(); return this.sum / 1000; },
  };
  let pair = null, busy = true, ready = false;

  const say = (words, bad = false) => {
    at("status").textContent = words;
    at("status").classList.toggle("bad", bad);
  };
  const groups = () => [...form.querySelectorAll("fieldset")];
  const chosen = (group) => group.querySelector("input:checked")?.value;
  const answers = () => Object.fromEntries(groups().map((it) => [it.dataset.axis, chosen(it)]).filter(([, it]) => it));
  const current = () => document.activeElement.closest?.("fieldset") ?? groups().find((it) => !chosen(it));

  const refresh = () => {
    const open = ready && !busy && pair?.showing != null;
    const left = groups().filter((it) => !chosen(it)).map((it) => it.querySelector("legend").textContent);
    at("pair").classList.toggle("waiting", !ready);
    form.inert = !open;
    at("send").disabled = !open || left.length > 0;
    at("undo").disabled = busy || !pair?.can_undo;
    at("missing").textContent = !open ? "" : left.length ? `Still open: ${left.join(", ")}.` : "All answered.";
    const now = current();
    groups().forEach((it) => it.classList.toggle("now", open && it === now));
  };
  const build = (axes, votes) => at("axes").replaceChildren(...axes.map((axis) => {
    const group = at("axis").content.cloneNode(true).firstElementChild, [name, hint] = AXES[axis];
    group.dataset.axis = axis;
    group.querySelector("legend").textContent = name;
    group.querySelector(".hint").textContent = hint;
    group.querySelector(".hint").id = `hint-${axis}`;
    group.setAttribute("aria-describedby", `hint-${axis}`);
    for (const radio of group.querySelectorAll("input")) {
      radio.name = axis;
      radio.checked = votes[axis] === radio.value;
    }
    return group;
  }));

  const show = async (next, words) => {
    const { showing, done, total } = pair = next;
    [ready, watched.sum, watched.since] = [false, 0, null];
    at("count").textContent = `${done} of ${total}`;
    at("progress").value = total ? done : 1;
    at("progress").max = total || 1;
    at("pair").hidden = at("send").hidden = showing === null;
    at("thanks").hidden = showing !== null;
    scrollTo(0, 0);
    if (showing === null) {
      player.stop();
      busy = false;
      at("sum").textContent = `You have judged ${done} of ${total} pairs. Every answer is saved; you can close this page.`;
      say([words, "No more pairs."].filter(Boolean).join(" "));
      refresh();
      return at("thank").focus();
    }
    at("prompt").textContent = next.prompt;
    build(next.axes, next.votes ?? JSON.parse(stored("sessionStorage", `votes ${showing}`) ?? "{}"));
    refresh();
    say([words, "The videos are loading."].filter(Boolean).join(" "));
    await look(words);
  };
  const look = async (words) => {
    at("again").hidden = true;
    await player.load(pair, miss);
    [ready, busy] = [true, false];
    watched.start();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
    at("prompt").focus({ preventScroll: true });
    say([words, `Pair ${pair.done + 1} of ${pair.total}.`].filter(Boolean).join(" "));
    refresh();
  };
  const miss = () => {
    if (ready && busy) return; // the answer is on its way
    [ready, busy] = [false, false];
    watched.stop();
    refresh();
    say("A video could not be loaded. Nothing can be voted on until both are seen.", true);
    at("again").hidden = false;
    at("again").onclick = () => { say("The videos are loading."); look(); };
  };

  /** One thing at a time: whatever was chosen stays until the server has answered. */
  const attempt = async (work) => {
    busy = true;
    refresh();
    try {
      await work();
    } catch (error) {
      busy = false;
      say(error.message, true);
      refresh();
    }
  };
  const vote = () => attempt(async () => {
    const votes = answers(), { showing } = pair;
    const client = `${navigator.userAgent} ${innerWidth}x${innerHeight}`.slice(0, 200);
    say("Saving.");
    let words = "Saved.", next;
    try {
      next = await ask("/api/vote", { showing, votes, seconds: watched.take(), client });
    } catch (error) {
      if (error.status !== 409) { watched.start(); throw error; }
      words = error.message;
      next = await ask("/api/next");
    }
    stored("sessionStorage", `votes ${showing}`, null);
    await show(next, words);
  });
  const undo = () => attempt(async () => {
    let words = "Undone.", next;
    try {
      next = await once("/api/undo", { showing: pair.showing });
    } catch (error) { // never sent twice: the second would undo one vote more
      if (error instanceof Refused) throw error;
      words = "The connection was lost: look whether the vote was undone.";
      next = await ask("/api/next");
    }
    await show(next, words);
  });

  form.onsubmit = (event) => {
    event.preventDefault();
    if (!at("send").disabled) vote();
  };
  form.onchange = () => {
    stored("sessionStorage", `votes ${pair.showing}`, JSON.stringify(answers()));
    refresh();
  };
  form.addEventListener("focusin", refresh);
  form.addEventListener("focusout", () => setTimeout(refresh));
  document.addEventListener("visibilitychange", () => ready && !busy && watched[document.hidden ? "stop" : "start"]());

  // ---- buttons and keys -----------------------------------------------------------------------------------------
  const choose = (value) => {
    const group = current(), all = groups();
    if (form.inert || !group) return;
    group.querySelector(`[value=${value}]`).checked = true;
    form.onchange();
    const after = all.slice(all.indexOf(group) + 1);
    (after.find((it) => !chosen(it)) ?? all.find((it) => !chosen(it)) ?? group).focus();
    refresh();
  };
  const click = (id) => () => { if (!at(id).disabled) at(id).click(); };
  const KEYS = {
    1: () => choose("left"), 2: () => choose("same"), 3: () => choose("right"), Enter: click("send"), " ": click("play"),
    ",": click("back"), ".": click("on"), "[": () => player.faster(-1), "]": () => player.faster(1), l: click("loop"),
    u: click("undo"), "?": () => at("helping").showModal(),
  };
  at("play").onclick = player.toggle;
  at("back").onclick = () => player.step(-1);
  at("on").onclick = () => player.step(1);
  at("loop").onclick = player.loop;
  at("frame").oninput = () => player.go(Number(at("frame").value));
  at("speed").onchange = () => player.speed(Number(at("speed").value));
  document.querySelectorAll(".screen").forEach((it) => { it.onclick = player.toggle; });
  at("undo").onclick = undo;
  at("help").onclick = KEYS["?"];
  at("keys").checked = stored("localStorage", "reelign keys") !== "off";
  at("keys").onchange = () => {
    stored("localStorage", "reelign keys", at("keys").checked ? "on" : "off");
    document.body.classList.toggle("keyless", !at("keys").checked);
  };
  at("keys").onchange();
  document.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const held = (event.ctrlKey || event.altKey || event.metaKey) && !event.getModifierState("AltGraph");
    if (!Object.hasOwn(KEYS, key) || held || event.isComposing || !at("keys").checked || at("helping").open) return;
    if (event.repeat && key !== "," && key !== ".") return;
    const own = { Enter: "button, select", " ": "button, select, input" }[key] ?? "select"; // have a use for the key
    if (event.target.matches(own)) return;
    event.preventDefault();
    KEYS[key]();
  });

  if (!("requestVideoFrameCallback" in HTMLVideoElement.prototype))
    say("This browser cannot keep two videos in step: open the link in a current Chrome, Edge, Firefox or Safari.", true);
  else attempt(async () => show(await ask("/api/next")));
})();
