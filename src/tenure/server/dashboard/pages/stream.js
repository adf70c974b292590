// A conversation's events as they come: server-sent events over fetch, because an EventSource cannot carry a key.
// It resumes at its cursor, at this same node, until it is closed; what it hands on has no gap and no repeat.

import { at, pause, Problem, reach, setLink } from "./api.js";

const SILENCE_MS = 40_000; // the server says something every 15 s

/** Split a stream of text into server-sent events: {id, event, data}. */
export class Parser {
  #rest = "";
  #one = {};

  /** What is complete by now; comments count as {comment}. */
  take(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#one.data !== undefined) found.push(this.#one);
        this.#one = {};
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) {
        found.push({ comment: line.slice(1).trim() });
        continue;
      }
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") this.#one.data = this.#one.data === undefined ? value : `${this.#one.data}\n${value}`;
      else if (name === "id" || name === "event") this.#one[name] = value;
    }
    return found;
  }
}

/** One reader of one conversation. `on` has: event(event), delta(body), state(word), rewound(), gone(problem). */
export class Follow {
  #over = new AbortController();
  #failures = 0;

  constructor(id, after, on) {
    this.id = id;
    this.last = after;
    this.cursor = String(after);
    this.on = on;
    this.#run();
  }

  close() {
    this.#over.abort();
  }

  async #run() {
    while (!this.#over.signal.aborted) {
      let answered = false;
      try {
        await this.#read();
      } catch (error) {
        if (this.#over.signal.aborted) return;
        answered = error instanceof Problem;
        if (error instanceof Problem && error.status < 500 && error.status !== 429) {
          this.close();
          this.on.gone(error);
          return;
        }
      }
      if (this.#over.signal.aborted) return;
      if (!answered) setLink("reconnecting");
      this.on.state("reconnecting");
      this.#failures += 1;
      await pause(Math.min(5000, 150 * 2 ** Math.min(this.#failures, 6)), this.#over.signal);
    }
  }

  async #read() {
    const cut = new AbortController();
    const signal = AbortSignal.any([this.#over.signal, cut.signal]);
    let silence = setTimeout(() => cut.abort(), SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      const reply = await reach(at(this.id, "/stream"), { headers, signal, query: { after: this.cursor } });
      this.on.state("live");
      const parser = new Parser();
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = setTimeout(() => cut.abort(), SILENCE_MS);
        for (const one of parser.take(value)) {
          this.#failures = 0;
          if (one.comment === undefined && !this.#hear(one)) return;
        }
      }
    } finally {
      clearTimeout(silence);
      cut.abort();
    }
  }

  /** Hand on one event; false when this connection has nothing more to say. */
  #hear({ id, event, data }) {
    const body = JSON.parse(data);
    if (id === undefined) {
      if (event === "delta") this.on.delta(body);
      else if (event === "deleted") this.#end(() => this.on.gone(new Problem(410, { detail: "it was deleted" })));
      else if (event === "rewound") this.#end(() => this.on.rewound());
      return event === "delta";
    }
    if (body.seq <= this.last) return true; // said before
    if (body.seq !== this.last + 1) return false; // a gap: ask again from the cursor
    this.last = body.seq;
    this.cursor = id;
    this.on.event(body);
    return true;
  }

  #end(tell) {
    this.close();
    tell();
  }
}
