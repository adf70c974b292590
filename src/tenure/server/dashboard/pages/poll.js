// Ask again and again, while somebody can see the page.

import { pause, setLink, Unreachable, Problem } from "./api.js";

const SLOW_MS = 6000; // an answer that takes longer than this counts as none, until it is there
const GAP_MS = 250; // between the beginnings of two looks, however often they are hastened

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/**
 * Run `look` now and about every `ms` after it has ended, until `close`. `hasten` makes the next one come now; while one is
 * under way, right after it, since it may have seen what was before. `heard(error, failures)` is told how each did: null and
 * 0, or what was thrown and how many times in a row.
 */
export function poll(look, ms, heard = () => {}) {
  let over = new AbortController();
  let closed = false;
  let due = false;
  let began = 0;
  let failures = 0;

  async function once() {
    began = performance.now();
    const slow = setTimeout(() => {
      if (closed) return;
      setLink("reconnecting");
      heard(new Unreachable("the node does not answer"), Math.max(2, failures));
    }, SLOW_MS);
    let found = null;
    try {
      await look();
      failures = 0;
    } catch (error) {
      found = error;
      failures += 1;
      if (!(error instanceof Unreachable || error instanceof Problem)) reportError(error); // a fault of ours: say so, go on
    } finally {
      clearTimeout(slow);
    }
    if (!closed) heard(found, failures);
  }

  (async () => {
    while (!closed) {
      due = false;
      if (!document.hidden) await once();
      over = new AbortController();
      if (!due) await pause(failures ? 400 * 2 ** Math.min(failures, 4) : ms, over.signal);
      const early = GAP_MS - (performance.now() - began);
      if (early > 0) await sleep(early);
    }
  })();

  function hasten() {
    due = true;
    over.abort();
  }
  const seen = () => document.hidden || hasten();
  document.addEventListener("visibilitychange", seen);
  return {
    hasten,
    close() {
      closed = true;
      document.removeEventListener("visibilitychange", seen);
      over.abort();
    },
  };
}
