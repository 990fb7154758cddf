// Frames come in messages (see stream_server.py), wait in a short queue, and are shown one after the other.
(() => {
  const at = (id) => document.getElementById(id);
  const main = document.querySelector("main"), screen = at("screen"), brush = screen.getContext("2d");
  const fps = Number(main.dataset.fps), locked = main.dataset.locked === "yes";
  const MOST = 3 * fps; // frames that may wait; while there are more, nothing is read, and the server waits too
  const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  let run = null; // the stream that is on screen

  const say = (words, bad = false) => {
    at("status").textContent = words;
    at("status").classList.toggle("bad", bad);
  };
  const seconds = (frames) => `${(frames / fps).toFixed(1)} s`;
  const showButtons = () => {
    at("go").textContent = run ? "Switch prompt" : "Start";
    at("stop").disabled = !run;
    at("seed").disabled = Boolean(run);
  };

  const post = (where, body, signal) => {
    const headers = { "Content-Type": "application/json" };
    if (locked) headers.Authorization = `Bearer ${at("token").value}`;
    return fetch(where, { method: "POST", headers, body: JSON.stringify(body), signal });
  };
  const reason = async (answer) => {
    try { return (await answer.json()).error; } catch { return `the server answered ${answer.status}.`; }
  };

  async function* messages(reader) {
    let held = new Uint8Array(0);
    const take = async (size) => {
      while (held.length < size) {
        const { done, value } = await reader.read();
        if (done) return null;
        const both = new Uint8Array(held.length + value.length);
        both.set(held);
        both.set(value, held.length);
        held = both;
      }
      const taken = held.slice(0, size);
      held = held.slice(size);
      return taken;
    };
    for (;;) {
      const size = await take(4);
      if (!size) return;
      const words = await take(new DataView(size.buffer).getUint32(0));
      if (!words) return;
      const head = JSON.parse(new TextDecoder().decode(words)), pictures = [];
      for (const length of head.sizes ?? []) pictures.push(await take(length));
      if (pictures.includes(null)) return;
      yield [head, pictures];
    }
  }

  const receive = async (mine, body) => {
    for await (const [head, pictures] of messages(body.getReader())) {
      if (head.stream) mine.name = head.stream;
      if (head.end || head.error) mine.last = head;
      pictures.forEach((picture, index) => mine.queue.push({ picture, number: head.first + index, head }));
      while (run === mine && mine.queue.length > MOST) await sleep(50);
    }
    mine.last ??= { error: "the connection was lost." };
  };

  const draw = async (mine, { picture, number, head }) => {
    const bitmap = await createImageBitmap(new Blob([picture], { type: "image/jpeg" }));
    if (run !== mine) return;
    [screen.width, screen.height] = [bitmap.width, bitmap.height];
    brush.drawImage(bitmap, 0, 0);
    bitmap.close();
    mine.frames = number + 1;
    if (number === 0) at("first").textContent = `${((performance.now() - mine.began) / 1000).toFixed(2)} s`;
    if (head.prompt !== mine.prompt) {
      say(number === 0 ? "Playing." : `The new prompt shows from ${seconds(number)} on.`);
      mine.prompt = head.prompt;
      at("shown").textContent = head.prompt;
      screen.setAttribute("aria-label", `Video: ${head.prompt}`);
    }
    at("rate").textContent = head.rate.toFixed(1);
    at("length").textContent = seconds(number + 1);
    at("cache").textContent = `${(head.cache / 2 ** 20).toFixed(1)} MiB`;
  };

  const play = async (mine) => {
    let due = performance.now();
    while (run === mine) {
      const next = mine.queue.shift();
      if (!next) {
        if (mine.last) break;
        await sleep(10);
        continue;
      }
      const period = 1000 / Math.min(fps, Math.max(next.head.rate, 0.1)); // slower than its rate: even, not in bursts
      await sleep(due - performance.now());
      await draw(mine, next);
      due = Math.max(due, performance.now() - period) + period;
    }
    if (run !== mine) return;
    finish(mine.last.end ?? mine.last.error, !mine.last.end);
  };

  const finish = (words, bad = false) => {
    run?.abort.abort();
    run = null;
    showButtons();
    say(words, bad);
  };

  const start = async (asked) => {
    const mine = run = { abort: new AbortController(), began: performance.now(), queue: [], frames: 0, name: null, last: null, prompt: null };
    for (const id of ["first", "rate", "length", "cache"]) at(id).textContent = "–";
    showButtons();
    say("Waiting for the first frame.");
    try {
      const answer = await post("stream", asked, mine.abort.signal);
      if (run !== mine) return;
      if (!answer.ok) return finish(await reason(answer), true);
      play(mine);
      await receive(mine, answer.body);
    } catch (error) {
      mine.last ??= { error: "the connection was lost." };
      if (run === mine && mine.name === null) finish("the server cannot be reached.", true);
    }
  };

  const switchTo = async (mine, prompt) => {
    if (mine.name === null) return say("Wait for the first frame.");
    say("The new prompt comes with the next frames that are made.");
    try {
      const answer = await post(`stream/${mine.name}/prompt`, { prompt });
      if (!answer.ok && run === mine) say(await reason(answer), true);
    } catch { if (run === mine) say("the server cannot be reached.", true); }
  };

  at("ask").onsubmit = (event) => {
    event.preventDefault();
    const prompt = at("prompt").value.trim();
    if (!prompt) return say("Say what the video shows.", true);
    if (run) switchTo(run, prompt);
    else start({ prompt, seed: Number(at("seed").value || 0) });
  };
  at("stop").onclick = () => { finish(`Stopped after ${seconds(run.frames)}.`); at("go").focus(); };
  at("prompt").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("ask").requestSubmit();
  };
  document.onkeydown = (event) => { if (event.key === "Escape" && run) at("stop").click(); };
  addEventListener("pagehide", () => run?.abort.abort());
})();
