// Ask again and again, while somebody can see the page.

import { pause, Problem, Unreachable } from "./api.js";

/** Run `look` now and about every `ms` after it has ended, until `close`; `hasten` makes the next one come now. */
export function poll(look, ms, onProblem = () => {}) {
  let over = new AbortController();
  let wake = () => {};
  let closed = false;
  (async () => {
    let failures = 0;
    while (!closed) {
      if (!document.hidden) {
        try {
          await look();
          failures = 0;
        } catch (error) {
          if (!(error instanceof Unreachable || error instanceof Problem)) throw error;
          failures = Math.min(failures + 1, 4);
          if (!closed) onProblem(error);
        }
      }
      over = new AbortController();
      wake = () => over.abort();
      await pause(failures ? 400 * 2 ** failures : ms, over.signal);
    }
  })();
  const seen = () => document.hidden || wake();
  document.addEventListener("visibilitychange", seen);
  return {
    hasten: () => wake(),
    close() {
      closed = true;
      document.removeEventListener("visibilitychange", seen);
      wake();
    },
  };
}
