// Before the first paint: the colours that this browser was told, else the system's.
"use strict";
(() => {
  let choice = "system";
  try {
    choice = localStorage.getItem("tenure.theme") ?? "system";
  } catch {
    // a browser that keeps nothing shows the system's colours
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(choice) ? choice : "system";
})();
