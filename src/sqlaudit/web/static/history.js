// Comfort alone: every page works without it.
"use strict";

// Instants in the reader's zone; the exact one in UTC is in the title.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const ago = new Intl.RelativeTimeFormat(document.documentElement.lang || undefined, { numeric: "auto" });
const units = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function since(date) {
  const seconds = (date.getTime() - Date.now()) / 1000;
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) || units[units.length - 1];
  return ago.format(Math.round(seconds / size), unit);
}

for (const time of document.querySelectorAll("time[datetime]")) {
  const date = new Date(time.dateTime);
  if (!Number.isNaN(date.getTime())) {
    time.textContent = `${full.format(date)} (${since(date)})`;
  }
}
for (const field of document.querySelectorAll("input[name=zone]")) {
  field.value = zone;
}

// j and k go from change to change.
for (const hint of document.querySelectorAll(".keys")) {
  hint.hidden = false;
}
const stories = [...document.querySelectorAll(".story")];
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, textarea, select");
  const step = { j: 1, k: -1 }[event.key];
  if (!step || isTyping || event.ctrlKey || event.metaKey || event.altKey || !stories.length) {
    return;
  }
  const now = stories.indexOf(document.activeElement.closest(".story"));
  const next = stories[Math.min(Math.max(now + step, 0), stories.length - 1)];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
});

// What stands in a text field can be copied; also over plain HTTP, where a browser has no clipboard of its own.
for (const button of document.querySelectorAll(".copier")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    document.querySelector("main textarea").select();
    if (document.execCommand("copy")) {
      button.textContent = button.dataset.done;
    }
  });
}

// A slider below the marks of a row. Where it stays, there the page goes; its focus goes along.
const slider = document.querySelector(".slider");
if (slider) {
  const marks = [...document.querySelectorAll(".bar a")];
  const told = document.querySelector(".slid");
  const kept = "sqlaudit.slider";
  const tell = () => {
    const date = new Date(marks[slider.value - 1].dataset.instant);
    slider.setAttribute("aria-valuetext", full.format(date));
    told.textContent = full.format(date);
  };
  let waiting = 0;
  slider.hidden = false;
  tell();
  slider.addEventListener("input", () => {
    clearTimeout(waiting);
    told.hidden = false;
    tell();
  });
  slider.addEventListener("change", () => { // of each key, so it waits for the last one
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      sessionStorage.setItem(kept, "focus");
      location.assign(marks[slider.value - 1].href.baseVal);
    }, 400);
  });
  addEventListener("pageshow", () => {
    slider.value = slider.defaultValue;
    told.hidden = true;
    tell();
  });
  if (sessionStorage.getItem(kept)) {
    sessionStorage.removeItem(kept);
    slider.focus({ preventScroll: true });
  }
}
