// How old is what stands here? A page that cannot ask any more must not look as if it could.

import { Problem } from "./api.js";
import { h, say } from "./dom.js";
import { clock, now } from "./format.js";

const MOST_FAILURES = 2; // in a row: one alone is a hiccup

const WHY = { "store-unavailable": "the store does not answer" };
const why = (error) =>
  error instanceof Problem ? (WHY[error.code] ?? `the node answers with an error (${error.status})`) : "the node does not answer";

/** A refusal is an answer; this is one that is missing. */
const isOutage = (error) => error !== null && !(error instanceof Problem && error.status < 500);

/**
 * The banner of a view, first in `main`, and what its polls tell it: `freshness(main)(name)` is a `heard` for `poll`.
 * After two failures in a row of any of them it says as of when the page is, and why; `main` is called stale meanwhile.
 */
export function freshness(main) {
  const looks = new Map();
  const banner = h("p", { class: "as-of", role: "status", hidden: true, data: { part: "as-of" } });
  main.prepend(banner);

  function show() {
    const failing = [...looks.values()].filter((one) => one.failures >= MOST_FAILURES);
    const stale = failing.length > 0;
    main.classList.toggle("stale", stale);
    banner.hidden = !stale;
    if (!stale) return;
    const seen = failing.map((one) => one.at);
    const reason = failing[0].reason;
    const oldest = seen.includes(null) ? null : seen.sort()[0];
    say(banner, oldest === null ? `Nothing is known yet: ${reason}. Asked again until it does.` : `As of ${clock(oldest)}: ${reason}. Asked again until it does.`);
  }

  return (name) => (error, failures) => {
    const before = looks.get(name)?.at ?? null;
    if (isOutage(error)) looks.set(name, { at: before, failures, reason: why(error) });
    else looks.set(name, { at: new Date(now()).toISOString(), failures: 0 });
    show();
  };
}
