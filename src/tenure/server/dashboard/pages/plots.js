// Two small plots of the last hour, drawn anew as it moves. Sixty minutes from left to right; the right end is now.

import { h, s } from "./dom.js";
import { count, duration, shortClock } from "./format.js";

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [150, 58, 8, 10, 22];
let WIDTH = 600; // of the place that is drawn into: letters keep their size
const x = (index, of) => LEFT + ((WIDTH - LEFT - RIGHT) * index) / of;
const y = (part) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - part);

function frame(minutes, marks, summary) {
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary });
  for (const [part, words] of marks) {
    drawing.append(
      s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(part), y2: y(part) }),
      s("text", { class: "mark", x: LEFT - 6, y: y(part) + 3.5, "text-anchor": "end" }, words),
    );
  }
  for (const index of [0, 15, 30, 45, 59]) {
    const anchor = index === 0 ? "start" : index === 59 ? "end" : "middle";
    const words = index === 59 ? "now" : shortClock(minutes[index].at);
    drawing.append(s("text", { class: "mark", x: x(index + (index === 59 ? 1 : 0.5), 60), y: HEIGHT - 6, "text-anchor": anchor }, words));
  }
  return drawing;
}

/** What the pointer finds over each minute. */
function hits(minutes, words) {
  return minutes.map((minute, index) =>
    s("rect", { class: "hit", x: x(index, 60), y: TOP, width: x(1, 60) - x(0, 60), height: HEIGHT - TOP - BOTTOM },
      s("title", null, `${shortClock(minute.at)}: ${words(minute)}`)));
}

/** The same numbers to be read: the minutes in which something was, newest first. */
function table(place, heads, minutes, cells) {
  const state = JSON.stringify(minutes);
  if (place.dataset.drawn === state) return;
  place.dataset.drawn = state;
  if (!minutes.length) {
    place.replaceChildren(h("p", { class: "empty" }, "Nothing in the last hour."));
    return;
  }
  const rows = [...minutes].reverse().map((minute) =>
    h("tr", null, h("th", { scope: "row" }, shortClock(minute.at)), cells(minute).map((cell) => h("td", null, cell))));
  place.replaceChildren(h("table", null,
    h("thead", null, h("tr", null, ["Minute", ...heads].map((head) => h("th", { scope: "col" }, head)))), h("tbody", null, rows)));
}

export const barsTable = (place, minutes) =>
  table(place, ["Takeovers"], minutes.filter((minute) => minute.takeovers), (minute) => [count(minute.takeovers)]);

export const timesTable = (place, minutes) =>
  table(place, ["Median", "95 %", "Longest", "Completed", "Failed", "Interrupted"], minutes.filter((minute) => minute.p50_s !== null), (minute) => [
    duration(minute.p50_s), duration(minute.p95_s), duration(minute.max_s), count(minute.completed), count(minute.failed), count(minute.interrupted),
  ]);

/** The smallest of 1, 2, 5, 10, 20 … that is not below. */
function round(most) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return [1, 2, 5, 10].map((one) => one * ten).find((one) => one >= most);
}

function put(place, drawing, state) {
  if (place.dataset.drawn === state) return; // so that what the pointer shows stays
  place.dataset.drawn = state;
  place.replaceChildren(drawing);
}

/** Takeovers per minute. */
export function bars(place, minutes) {
  WIDTH = Math.max(240, place.clientWidth);
  const most = Math.max(...minutes.map((minute) => minute.takeovers));
  const top = round(Math.max(2, most));
  const sum = minutes.reduce((all, minute) => all + minute.takeovers, 0);
  const summary = sum ? `${count(sum)} ${sum === 1 ? "takeover" : "takeovers"} in the last hour, at most ${count(most)} in one minute` : "No takeovers in the last hour";
  const drawing = frame(minutes, [[0, "0"], [0.5, count(top / 2)], [1, count(top)]], summary);
  const wide = x(1, 60) - x(0, 60);
  minutes.forEach((minute, index) => {
    if (!minute.takeovers) return;
    const high = y(0) - y(minute.takeovers / top);
    drawing.append(s("rect", { class: "bar", x: x(index, 60) + 1, y: y(0) - high, width: wide - 2, height: high, rx: 1.5 }));
  });
  drawing.append(...hits(minutes, (minute) => `${count(minute.takeovers)} takeovers`));
  put(place, drawing, JSON.stringify([WIDTH, minutes[0].at, top, minutes.map((minute) => minute.takeovers)]));
}

/** A power of ten of seconds, beside the axis: there is room for few letters. */
function short(seconds) {
  if (seconds >= 10_000) return `${(seconds / 3600).toFixed(1)} h`;
  if (seconds >= 1) return `${count(seconds)} s`;
  return `${seconds * 1000} ms`;
}

/** Turn times per minute, on a logarithmic scale. */
export function times(place, minutes) {
  WIDTH = Math.max(240, place.clientWidth);
  const told = minutes.filter((minute) => minute.p50_s !== null);
  if (!told.length) {
    put(place, h("p", { class: "empty" }, "No turn ended in the last hour."), "empty");
    return;
  }
  const low = Math.floor(Math.log10(Math.max(0.001, Math.min(...told.map((minute) => minute.p50_s)))));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(0.002, ...told.map((minute) => minute.p95_s)))));
  const part = (seconds) => (Math.log10(Math.max(seconds, 10 ** low)) - low) / (high - low);
  const marks = [];
  for (let power = low; power <= high; power++) marks.push([(power - low) / (high - low), short(Number(`1e${power}`))]); // 10 ** -3 is not 0.001
  const last = told.at(-1);
  const summary = `Turn times by minute; lately the median was ${duration(last.p50_s)}, 95 % ended within ${duration(last.p95_s)}`;
  const drawing = frame(minutes, marks, summary);
  for (const name of ["p95", "p50"]) {
    const points = minutes.map((minute, index) => [x(index + 0.5, 60), minute[`${name}_s`]]);
    let path = "";
    let drawn = false; // a line between minutes that have turns; a minute without them is a gap
    for (const [across, seconds] of points) {
      if (seconds === null) drawn = false;
      else {
        path += `${drawn ? "L" : "M"}${across.toFixed(1)} ${y(part(seconds)).toFixed(1)}`;
        drawn = true;
      }
    }
    drawing.append(s("path", { class: `line-${name}`, d: path }));
    for (const [across, seconds] of points) {
      if (seconds !== null) drawing.append(s("circle", { class: `dot-${name}`, cx: across, cy: y(part(seconds)), r: 2 }));
    }
  }
  const words = (minute) =>
    minute.p50_s === null
      ? "no turns"
      : `median ${duration(minute.p50_s)}, 95 % ${duration(minute.p95_s)}, longest ${duration(minute.max_s)}; ` +
        `${count(minute.completed)} completed, ${count(minute.failed)} failed, ${count(minute.interrupted)} interrupted`;
  drawing.append(...hits(minutes, words));
  put(place, drawing, JSON.stringify([WIDTH, minutes[0].at, told]));
}
