// A journal as items that are told: what belongs together is one item. Pure; the view draws what changed.

import { fate, isMinor, told } from "./words.js";

/** Events in order, and the items that they make. Events may come at the end (as they happen) or at the start (older). */
export class Journal {
  first = 0; // seq of the oldest event that is here; 0: none
  last = 0;
  owner = null; // the node of the last claim that was not released
  epoch = 0;
  asks = null; // what an open turn waits for
  turn = null; // seq and start of the open turn
  #calls = new Map();
  #turns = new Map();

  /** Add one at the end; the items that are new or changed. */
  add(event) {
    this.first ||= event.seq;
    this.last = event.seq;
    this.#follow(event);
    return this.#items(event);
  }

  /** Items of older events, which are to be shown in front; and those shown already that these complete. */
  older(events) {
    const before = new Journal();
    const found = new Set();
    for (const event of events) for (const item of before.add(event)) found.add(item);
    const fresh = [...found];
    this.first = events[0]?.seq ?? this.first;
    const changed = [];
    for (const [call, item] of before.#calls) {
      const later = this.#calls.get(call);
      if (later) {
        item.seqs.push(...later.seqs);
        Object.assign(item.call, { closed: later.call.closed ?? item.call.closed, attempts: Math.max(item.call.attempts, later.call.attempts), lastAt: later.call.lastAt ?? item.call.lastAt });
        item.events.push(...later.events);
        changed.push({ gone: later });
      }
      this.#calls.set(call, item);
    }
    for (const [turn, at] of before.#turns) if (!this.#turns.has(turn)) this.#turns.set(turn, at);
    return { fresh, gone: changed.map((one) => one.gone) };
  }

  #follow({ kind, body, epoch, seq, at, turn }) {
    if (kind === "claimed") [this.owner, this.epoch] = [body.node, epoch];
    else if (kind === "released") this.owner = null;
    else if (kind === "turn_started") this.turn = { seq, at };
    else if (kind === "turn_waiting") this.asks = body.until ? null : { ask: body.ask, body };
    else if (kind.startsWith("turn_")) {
      this.asks = null;
      if (kind !== "turn_resumed") this.turn = null;
    }
    if (kind === "turn_started" && turn) this.#turns.set(turn, at);
  }

  #items(event) {
    const closes = event.closes?.[0];
    const restarted = event.kind === "call_restarted" ? event.body.call : null;
    const known = this.#calls.get(closes ?? restarted);
    if (known) {
      known.seqs.push(event.seq);
      known.events.push(event);
      if (restarted) [known.call.attempts, known.call.lastAt] = [event.body.attempt, event.at];
      else known.call.closed = event;
      return [known];
    }
    const item = { key: event.seq, seqs: [event.seq], events: [event], at: event.at, epoch: event.epoch, minor: isMinor(event) };
    if (event.kind === "call_started" || event.opens?.length || closes || restarted) {
      item.call = { opened: event, closed: closes ? event : null, attempts: event.body.attempt ?? 1, lastAt: null };
      this.#calls.set(event.opens?.[0] ?? closes ?? restarted, item);
    } else {
      item.told = told(event);
      if (["turn_completed", "turn_failed", "turn_interrupted"].includes(event.kind)) item.began = this.#turns.get(event.turn) ?? null;
    }
    return [item];
  }

  /** What a call's item shows now. */
  static fate = (item) => fate(item.call);
}
