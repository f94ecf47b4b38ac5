"use strict";

// An explorer shows one of many pictures. Each of its inputs chooses one thing (data-choose="epoch", say); a panel is
// shown if what it stands for (data-epoch="3") is what was chosen. Without this script all panels are shown.
for (const explorer of document.querySelectorAll("[data-explorer]")) {
  const inputs = [...explorer.querySelectorAll("[data-choose]")];
  const panels = [...explorer.querySelectorAll("[data-panel]")];
  const range = explorer.querySelector("input[type=range]");
  const output = explorer.querySelector("output");

  const isMatch = (panel, chosen) =>
    Object.entries(chosen).every(([what, value]) => (panel.dataset[what] ?? value) === value);

  const show = () => {
    const chosen = {};
    for (const input of inputs) {
      if (input.type !== "radio" || input.checked) chosen[input.dataset.choose] = input.value;
    }
    for (const panel of panels) panel.hidden = !isMatch(panel, chosen);
    if (range) {
      const label = panels.find((panel) => panel.dataset.epoch === range.value).dataset.label;
      output.textContent = label;
      range.setAttribute("aria-valuetext", label);
    }
  };

  explorer.classList.add("explorer");
  explorer.querySelector(".controls").hidden = false;
  explorer.addEventListener("input", show);
  show();
}
