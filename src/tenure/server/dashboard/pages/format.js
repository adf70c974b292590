// Numbers and times, for people. The server's clock is told apart from this machine's by the Date of its replies.

let ahead = 0; // milliseconds that the server's clock is ahead of ours

/** Learn how far the server's clock is from ours. */
export function heed(date) {
  const theirs = Date.parse(date ?? "");
  if (Number.isNaN(theirs)) return;
  const found = theirs + 500 - Date.now(); // a Date has whole seconds
  if (Math.abs(found - ahead) > 1500) ahead = found;
}

/** Milliseconds since 1970 by the server's clock. */
export const now = () => Date.now() + ahead;

/** Seconds as people say them: 40 ms, 1.2 s, 3 min 5 s, 2 h 10 min, 4 d 2 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const positive = Math.max(0, seconds);
  if (positive < 0.9995) return `${Math.round(positive * 1000)} ms`;
  if (positive < 9.95) return `${positive.toFixed(1)} s`;
  if (positive < 59.5) return `${Math.round(positive)} s`;
  const whole = Math.round(positive);
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return hours ? `${days} d ${hours} h` : `${days} d`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
}

/** How long ago a moment was; coarser as it gets older, so that it does not flicker. */
export function ago(iso) {
  const seconds = (now() - Date.parse(iso)) / 1000;
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1.5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return duration(Math.floor(seconds / 60) * 60);
}

/** Seconds between two moments. */
export const between = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const SHORT = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const DAY = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });

const formatted = (format, iso) => {
  const time = Date.parse(iso);
  return Number.isNaN(time) ? "–" : format.format(time);
};

/** 14:03:07 here. */
export const clock = (iso) => formatted(CLOCK, iso);
/** 14:03 here. */
export const shortClock = (iso) => formatted(SHORT, iso);
/** 3 Feb 2026 here. */
export const day = (iso) => formatted(DAY, iso);
/** Whole numbers with the marks of this country. */
export const count = (number) => (number ?? 0).toLocaleString();

/** One line of JSON, cut. */
export function brief(value, most = 160) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** A colour of eight for a node's name: the same one on every page, on every machine. */
export function hue(name) {
  let sum = 7;
  for (const letter of name ?? "") sum = (sum * 31 + letter.codePointAt(0)) % 104729;
  return sum % 8;
}
