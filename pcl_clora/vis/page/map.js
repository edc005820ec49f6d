"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SPACE = "http://www.w3.org/2000/svg";
  const byId = (name) => document.getElementById(name);
  byId("title").textContent = data.title;
  byId("note").textContent = data.note;
  const map = byId("map"), card = byId("card");
  map.setAttribute("viewBox", "-2 -2 104 104");

  function dot(x, y, radius, colour) {
    const circle = document.createElementNS(SPACE, "circle");
    circle.setAttribute("cx", x);
    circle.setAttribute("cy", y);
    circle.setAttribute("r", radius);
    circle.setAttribute("fill", colour);
    return circle;
  }

  function show(point, box) {
    byId("picture").src = point.picture;
    byId("picture").hidden = !point.picture;
    byId("caption").textContent = point.name + (point.group ? " (" + point.group + ")" : "");
    card.hidden = false;
    const left = Math.min(box.right + 8, window.innerWidth - card.offsetWidth - 8);
    const top = Math.min(box.bottom + 8, window.innerHeight - card.offsetHeight - 8);
    card.style.left = Math.max(left, 0) + "px";
    card.style.top = Math.max(top, 0) + "px";
  }

  const radius = Math.max(0.35, Math.min(1.2, 14 / Math.sqrt(data.points.length)));
  const circles = data.points.map(function (point) {
    const circle = dot(point.x, point.y, radius, data.colours[point.group] || "#6f93b8");
    circle.setAttribute("tabindex", "0");
    circle.setAttribute("aria-label", point.name + " " + point.group);
    const open = () => show(point, circle.getBoundingClientRect());
    circle.addEventListener("mouseenter", open);
    circle.addEventListener("focus", open);
    circle.addEventListener("mouseleave", () => { card.hidden = true; });
    circle.addEventListener("blur", () => { card.hidden = true; });
    map.append(circle);
    return circle;
  });

  let chosen = "";
  const buttons = Object.keys(data.colours).map(function (group) {
    const item = document.createElement("li"), button = document.createElement("button");
    const sample = document.createElementNS(SPACE, "svg");
    sample.setAttribute("viewBox", "0 0 12 12");
    sample.append(dot(6, 6, 5, data.colours[group]));
    const count = data.points.filter((point) => point.group === group).length;
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(sample, group + " (" + count + ")");
    button.addEventListener("click", function () {
      chosen = chosen === group ? "" : group;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button && chosen !== "")));
      circles.forEach((circle, at) => circle.classList.toggle("faint", chosen !== "" && data.points[at].group !== chosen));
    });
    item.append(button);
    byId("legend").append(item);
    return button;
  });
  window.pclMap = { ready: true, count: circles.length };
})();
