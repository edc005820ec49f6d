"use strict";
// One WebGL canvas behind all panels; every panel draws into its own rectangle of it, and only when something changed.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const canvas = byId("canvas"), stage = byId("stage"), grid = byId("grid");
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
  const BACKGROUNDS = [[1, 1, 1], [0.078, 0.094, 0.114], [0.78, 0.8, 0.83]];
  const MAP = data.scale, PLAIN = data.plain;
  const FIELD = 0.6, NEAR = 0.02, FAR = 40, PICK = 4;
  const LARGE = 150000, BUDGET = 40;  // points; milliseconds a frame while the camera moves
  const state = { panels: [], background: 0, size: 1, linked: true, centers: false, active: 0, dirty: true, frames: 0, cost: 0, moving: false };

  // ---- data -------------------------------------------------------------------------------------------------
  const decoded = new Map();
  function bytes(number) {
    if (!decoded.has(number)) {
      const text = byId("buffer" + number).textContent;
      let out;
      if (Uint8Array.fromBase64) out = Uint8Array.fromBase64(text);
      else {
        const raw = atob(text);
        out = new Uint8Array(raw.length);
        for (let k = 0; k < raw.length; k++) out[k] = raw.charCodeAt(k);
      }
      decoded.set(number, out);
    }
    return decoded.get(number);
  }
  const TYPES = { u8: Uint8Array, u16: Uint16Array, f32: Float32Array };
  function typed(number, type) {
    const b = bytes(number), T = TYPES[type];
    return new T(b.buffer, b.byteOffset, b.byteLength / T.BYTES_PER_ELEMENT);
  }

  // ---- WebGL ------------------------------------------------------------------------------------------------
  const VERTEX = `#version 300 es
  precision highp float;
  precision highp int;
  layout(location = 0) in vec3 a_position;
  layout(location = 1) in float a_value;
  uniform vec3 u_scale, u_middle;
  uniform float u_reach, u_size, u_least, u_lift;
  uniform mat4 u_view;
  uniform int u_mode, u_picking;
  uniform sampler2D u_palette;
  uniform vec3 u_plain;
  flat out vec4 v_colour;
  void main() {
    vec3 world = (a_position * u_scale - u_middle) * u_reach;
    vec4 place = u_view * vec4(world, 1.0);
    vec4 colour = vec4(u_plain, 1.0);
    if (u_mode == 0) {
      int label = int(a_value + 0.5);
      colour = texelFetch(u_palette, ivec2(label & 255, label >> 8), 0);
    } else if (u_mode == 1) {
      colour = texelFetch(u_palette, ivec2(int(clamp(a_value, 0.0, 1.0) * 255.0 + 0.5), 0), 0);
    }
    if (colour.a < 0.5) place = vec4(2.0, 2.0, 2.0, 1.0);
    if (u_picking == 1) {
      int id = gl_VertexID + 1;
      colour = vec4(float(id & 255), float((id >> 8) & 255), float((id >> 16) & 255), float((id >> 24) & 255)) / 255.0;
    }
    v_colour = colour;
    place.z -= u_lift * place.w;
    gl_Position = place;
    gl_PointSize = max(u_size / max(place.w, 0.001), u_least);
  }`;
  const FRAGMENT = `#version 300 es
  precision highp float;
  precision highp int;
  flat in vec4 v_colour;
  uniform int u_picking, u_flat;
  uniform float u_rim;
  out vec4 colour;
  void main() {
    vec2 at = gl_PointCoord * 2.0 - 1.0;
    float away = dot(at, at);
    if (u_flat == 0 && away > 1.0) discard;
    if (u_picking == 1) { colour = v_colour; return; }
    float light = 1.0;
    if (u_flat == 0) {
      vec3 facing = vec3(at.x, -at.y, sqrt(max(1.0 - away, 0.0)));
      light = 0.66 + 0.40 * clamp(dot(facing, normalize(vec3(-0.4, 0.5, 0.85))), 0.0, 1.0);
      light = min(light, 1.0);
    }
    vec3 shown = v_colour.rgb * light;
    if (u_rim > 0.0 && away > 0.52) shown = vec3(1.0);
    if (u_rim > 0.0 && away > 0.8) shown = vec3(0.08);
    colour = vec4(shown, 1.0);
  }`;
  const uniforms = {};
  let program = null;
  function compile() {
    program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    for (const name of ["scale", "middle", "reach", "size", "least", "view", "mode", "picking", "palette", "plain", "flat", "rim", "lift"]) {
      uniforms[name] = gl.getUniformLocation(program, "u_" + name);
    }
  }
  let uploaded = new Map();
  function upload(number) {
    if (!uploaded.has(number)) {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, bytes(number), gl.STATIC_DRAW);
      uploaded.set(number, buffer);
    }
    return uploaded.get(number);
  }
  const GL_TYPE = { u8: "UNSIGNED_BYTE", u16: "UNSIGNED_SHORT", f32: "FLOAT" };
  const WIDTH = { u8: 1, u16: 2, f32: 4 };
  const hexColour = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
  function mapColour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (MAP.length - 1), low = Math.min(Math.floor(place), MAP.length - 2);
    return MAP[low].map((value, k) => Math.round(value + (MAP[low + 1][k] - value) * (place - low)));
  }
  function fillPalette(layer) {
    const count = layer.kind === "labels" ? layer.labels.length : 256, rows = Math.ceil(count / 256);
    const pixels = new Uint8Array(256 * rows * 4);
    for (let k = 0; k < count; k++) {
      const colour = layer.kind === "labels" ? hexColour(layer.colours[k]) : mapColour(k / 255);
      pixels.set([...colour, layer.hidden && layer.hidden.has(k) ? 0 : 255], 4 * k);
    }
    if (!layer.texture) layer.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, layer.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, rows, 0, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  }

  // ---- cameras ----------------------------------------------------------------------------------------------
  const startCamera = () => ({ turn: data.turn, tilt: data.tilt, distance: 3.95, x: 0, y: 0, z: 0 });
  function axes(camera) {
    const ct = Math.cos(camera.turn), st = Math.sin(camera.turn), cp = Math.cos(camera.tilt), sp = Math.sin(camera.tilt);
    return { right: [ct, 0, -st], up: [-st * sp, cp, -ct * sp], back: [st * cp, sp, ct * cp] };
  }
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  function viewMatrix(camera, aspect, aside) {
    const { right, up, back } = axes(camera), target = [camera.x, camera.y, camera.z];
    const eye = target.map((value, k) => value + back[k] * camera.distance);
    const f = 1 / Math.tan(FIELD / 2), narrow = Math.min(aspect, 1);
    const fx = (f / aspect) * narrow, fy = f * narrow;
    const a = (FAR + NEAR) / (NEAR - FAR), b = (2 * FAR * NEAR) / (NEAR - FAR);
    const rows = [[...right, -dot(right, eye)], [...up, -dot(up, eye)], [...back, -dot(back, eye)]];
    const out = new Float32Array(16);
    for (let c = 0; c < 4; c++) {
      const column = [0, 1, 2].map((row) => (data.up === "z" ? [rows[row][0], -rows[row][2], rows[row][1], rows[row][3]] : rows[row])[c]);
      out[4 * c] = fx * column[0] - aside * column[2];
      out[4 * c + 1] = fy * column[1];
      out[4 * c + 2] = a * column[2] + (c === 3 ? b : 0);
      out[4 * c + 3] = -column[2];
    }
    return { matrix: out, fy };
  }
  function changeCamera(panel, change) {
    const chosen = state.linked ? state.panels : [panel];
    change(panel.camera);
    panel.camera.tilt = Math.min(Math.max(panel.camera.tilt, -1.55), 1.55);
    panel.camera.distance = Math.min(Math.max(panel.camera.distance, 0.15), 20);
    moving();
    for (const other of chosen) if (other !== panel) Object.assign(other.camera, panel.camera);
    redraw();
  }
  function move(camera, dx, dy) {
    const { right, up } = axes(camera), step = camera.distance * FIELD;
    ["x", "y", "z"].forEach((axis, k) => { camera[axis] += step * (-dx * right[k] + dy * up[k]); });
  }

  // ---- drawing ----------------------------------------------------------------------------------------------
  function rectangle(panel) {
    const a = panel.view.getBoundingClientRect(), b = canvas.getBoundingClientRect(), ratio = canvas.width / Math.max(b.width, 1);
    const x = Math.round((a.left - b.left) * ratio), y = Math.round((b.bottom - a.bottom) * ratio);
    return { x, y, w: Math.round(a.width * ratio), h: Math.round(a.height * ratio), ratio };
  }
  function bindPoints(source, type, scale, middle, reach, every) {
    gl.bindBuffer(gl.ARRAY_BUFFER, upload(source));
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl[GL_TYPE[type]], false, 3 * WIDTH[type] * every, 0);
    gl.uniform3fv(uniforms.scale, scale);
    gl.uniform3fv(uniforms.middle, middle);
    gl.uniform1f(uniforms.reach, reach);
  }
  function drawPanel(panel, box, picking, every) {
    const points = panel.points, layer = panel.layers[panel.shown];
    gl.useProgram(program);
    gl.viewport(box.x, box.y, box.w, box.h);
    gl.enable(gl.DEPTH_TEST);
    const { matrix, fy } = viewMatrix(panel.camera, box.w / Math.max(box.h, 1), panel.legend.hidden || box.w > 560 * box.ratio ? 0 : 0.14);
    gl.uniformMatrix4fv(uniforms.view, false, matrix);
    gl.uniform1i(uniforms.picking, picking ? 1 : 0);
    const ball = Math.min(1.45 / Math.sqrt(points.count), 0.1) * state.size;
    const pixels = ball * fy * box.h;
    gl.uniform1f(uniforms.size, pixels);
    gl.uniform1f(uniforms.least, (points.count > 50000 ? 1.4 : 2) * box.ratio * Math.min(state.size, 1));
    gl.uniform1i(uniforms.flat, pixels / panel.camera.distance < 3 ? 1 : 0);
    gl.uniform1f(uniforms.rim, 0);
    gl.uniform1f(uniforms.lift, 0);
    bindPoints(points.buffer, points.type, points.scale, panel.middle, panel.reach, every);
    gl.activeTexture(gl.TEXTURE0);
    gl.uniform1i(uniforms.palette, 0);
    gl.uniform3fv(uniforms.plain, PLAIN.map((value) => value / 255));
    if (layer) {
      if (!layer.texture) fillPalette(layer);
      gl.bindTexture(gl.TEXTURE_2D, layer.texture);
      gl.bindBuffer(gl.ARRAY_BUFFER, upload(layer.buffer));
      gl.enableVertexAttribArray(1);
      gl.vertexAttribPointer(1, 1, gl[GL_TYPE[layer.type]], layer.kind === "scalars", WIDTH[layer.type] * every, 0);
    } else gl.disableVertexAttribArray(1);
    gl.uniform1i(uniforms.mode, !layer ? 2 : layer.kind === "labels" ? 0 : 1);
    gl.drawArrays(gl.POINTS, 0, Math.ceil(points.count / every));
    if (state.centers && panel.centers && !picking) {
      gl.disableVertexAttribArray(1);
      gl.uniform1i(uniforms.mode, 2);
      gl.uniform3f(uniforms.plain, 0.84, 0.37, 0);
      gl.uniform1f(uniforms.size, 0);
      gl.uniform1f(uniforms.least, 10 * box.ratio);
      gl.uniform1i(uniforms.flat, 0);
      gl.uniform1f(uniforms.rim, 1);
      gl.uniform1f(uniforms.lift, 0.0005);
      const low = points.low;
      bindPoints(panel.centers.buffer, "f32", [1, 1, 1], panel.middle.map((value, k) => value + low[k]), panel.reach, 1);
      gl.drawArrays(gl.POINTS, 0, panel.centers.count);
    }
  }
  // A large cloud on a slow device is drawn thinner while it moves: every k-th point, by a larger stride of its
  // buffers (WebGL allows 255 bytes). It is drawn whole as soon as it rests.
  function thinning() {
    const large = state.panels.some((panel) => panel.points.count > LARGE);
    return large && state.moving ? Math.min(Math.max(Math.ceil(state.cost / BUDGET), 1), 20) : 1;
  }
  function draw() {
    const every = thinning(), began = performance.now();
    state.dirty = false;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const w = Math.max(1, Math.round(stage.clientWidth * ratio)), h = Math.max(1, Math.round(stage.clientHeight * ratio));
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    canvas.style.height = stage.clientHeight + "px";
    canvas.style.marginBottom = -stage.clientHeight + "px";
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(...BACKGROUNDS[state.background], 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    for (const panel of state.panels) {
      const box = rectangle(panel);
      if (box.w < 2 || box.h < 2 || box.y + box.h < 0 || box.y > h) continue;
      gl.scissor(box.x, box.y, box.w, box.h);
      drawPanel(panel, box, false, every);
    }
    state.frames++;
    if (every === 1 && state.panels.some((panel) => panel.points.count > LARGE)) {
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until it is drawn
      state.cost = performance.now() - began;
    }
  }
  let resting = 0;
  function moving() {
    state.moving = true;
    clearTimeout(resting);
    resting = setTimeout(() => { const thin = thinning() > 1; state.moving = false; if (thin) redraw(); }, 200);
  }
  let asked = false;
  function redraw() {
    state.dirty = true;
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; if (state.dirty && !stage.hidden) draw(); });
  }

  // ---- picking ----------------------------------------------------------------------------------------------
  let target = null;
  function pick(panel, x, y) {
    const box = rectangle(panel), px = Math.round(x * box.ratio), py = Math.round(box.h - y * box.ratio);
    if (!target || target.w !== box.w || target.h !== box.h) {
      if (target) { gl.deleteFramebuffer(target.frame); gl.deleteTexture(target.colour); gl.deleteRenderbuffer(target.depth); }
      target = { w: box.w, h: box.h, frame: gl.createFramebuffer(), colour: gl.createTexture(), depth: gl.createRenderbuffer() };
      gl.bindTexture(gl.TEXTURE_2D, target.colour);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, box.w, box.h, 0, gl.RGBA, gl.UNSIGNED_BYTE, null);
      gl.bindRenderbuffer(gl.RENDERBUFFER, target.depth);
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, box.w, box.h);
      gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, target.colour, 0);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, target.depth);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
    const x0 = Math.max(px - PICK, 0), y0 = Math.max(py - PICK, 0), w = Math.min(2 * PICK + 1, box.w - x0), h = Math.min(2 * PICK + 1, box.h - y0);
    if (w < 1 || h < 1) { gl.bindFramebuffer(gl.FRAMEBUFFER, null); return -1; }
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(x0, y0, w, h);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    drawPanel(panel, { x: 0, y: 0, w: box.w, h: box.h, ratio: box.ratio }, true, 1);
    const out = new Uint8Array(4 * w * h);
    gl.readPixels(x0, y0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, out);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    let best = -1, least = Infinity;
    for (let k = 0; k < w * h; k++) {
      const id = out[4 * k] + 256 * out[4 * k + 1] + 65536 * out[4 * k + 2] + 16777216 * out[4 * k + 3];
      const away = Math.hypot(x0 + (k % w) - px, y0 + Math.floor(k / w) - py);
      if (id && away < least) { least = away; best = id - 1; }
    }
    return best;
  }
  const short = (value) => Number(value.toPrecision(3)).toString();
  const round = (value) => Number(value.toPrecision(5)).toString();
  function readPoint(panel, index) {
    const points = panel.points, raw = typed(points.buffer, points.type);
    const place = [0, 1, 2].map((k) => points.low[k] + raw[3 * index + k] * points.scale[k]);
    const found = { index, coordinates: place, values: {} };
    for (const layer of panel.layers) {
      const value = typed(layer.buffer, layer.type)[index];
      found.values[layer.name] = layer.kind === "labels" ? layer.names[value]
        : layer.low + (value / 65535) * (layer.high - layer.low);
    }
    return found;
  }
  function showPoint(panel, index) {
    panel.picked.hidden = index < 0;
    if (index < 0) return;
    const found = readPoint(panel, index);
    const lines = ["point " + index, "x " + round(found.coordinates[0]) + "  y " + round(found.coordinates[1]) + "  z " + round(found.coordinates[2])];
    for (const [name, value] of Object.entries(found.values)) lines.push(name + ": " + (typeof value === "number" ? round(value) : value));
    panel.picked.replaceChildren(...lines.map((line) => element("div", "", line)));
  }

  // ---- page -------------------------------------------------------------------------------------------------
  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const percent = (value) => (100 * value).toFixed(1) + " %";
  function legend(panel) {
    const box = panel.legend, layer = panel.layers[panel.shown];
    box.replaceChildren();
    box.hidden = !layer;
    if (!layer) return;
    if (layer.kind === "scalars") {
      const bar = element("canvas", "bar");
      bar.width = 256;
      bar.height = 1;
      const context = bar.getContext("2d");
      for (let k = 0; k < 256; k++) { context.fillStyle = `rgb(${mapColour(k / 255).join(",")})`; context.fillRect(k, 0, 1, 1); }
      const ends = element("div", "ends");
      ends.append(element("span", "", short(layer.low)), element("span", "", layer.name), element("span", "", short(layer.high)));
      box.append(bar, ends);
      return;
    }
    if (layer.labels.length > 40) { box.append(element("span", "", layer.labels.length + " " + layer.name)); return; }
    const table = element("table", ""), any = layer.ious.some((iou) => iou !== null);
    layer.names.forEach((name, k) => {
      const row = element("tr", layer.hidden.has(k) ? "off" : ""), label = element("label", ""), tick = element("input", "");
      tick.type = "checkbox";
      tick.checked = !layer.hidden.has(k);
      tick.setAttribute("aria-label", "show " + name);
      tick.addEventListener("change", () => toggle(panel, k, tick.checked));
      const swatch = element("span", "swatch");
      swatch.style.background = layer.colours[k];
      label.append(tick, swatch, element("span", "", name));
      const cell = element("td", "");
      cell.append(label);
      row.append(cell, element("td", "number", layer.counts[k].toLocaleString("en")));
      if (any) row.append(element("td", "number", layer.ious[k] === null ? "" : "IoU " + percent(layer.ious[k])));
      table.append(row);
    });
    box.append(table);
  }
  function toggle(panel, k, visible) {
    const name = panel.layers[panel.shown].name;
    for (const other of state.linked ? state.panels : [panel]) {
      const layer = other.layers.find((item) => item.kind === "labels" && item.name === name);
      if (!layer || k >= layer.labels.length) continue;
      if (visible) layer.hidden.delete(k); else layer.hidden.add(k);
      fillPalette(layer);
      legend(other);
    }
    redraw();
  }
  function choose(panel, number) {
    if (number < 0 || number >= panel.layers.length) return;
    panel.shown = number;
    if (panel.select) panel.select.value = String(number);
    legend(panel);
    redraw();
  }
  function addPanel(description, number) {
    const panel = { ...description, number, camera: startCamera() };
    panel.layers = description.layers.map((layer) => ({ ...layer, hidden: new Set(), texture: null }));
    const points = panel.points, unit = points.size;
    panel.middle = unit.map((value) => value / 2);
    panel.reach = 1 / Math.max(Math.hypot(...unit) / 2, 1e-30);
    const box = element("section", "panel");
    box.setAttribute("aria-label", panel.title || "panel " + (number + 1));
    panel.view = element("div", "view");
    const top = element("div", "top");
    top.append(element("span", "name", panel.title), element("span", "note", panel.note));
    if (panel.layers.length > 1) {
      panel.select = element("select", "");
      panel.select.setAttribute("aria-label", "Colours of " + (panel.title || "panel"));
      panel.layers.forEach((layer, k) => { const option = element("option", "", layer.name); option.value = String(k); panel.select.append(option); });
      panel.select.value = String(panel.shown);
      panel.select.addEventListener("change", () => choose(panel, Number(panel.select.value)));
      top.append(panel.select);
    }
    panel.legend = element("div", "legend");
    panel.picked = element("div", "picked");
    panel.picked.hidden = true;
    box.append(panel.view, top, panel.legend, panel.picked);
    grid.append(box);
    state.panels.push(panel);
    legend(panel);
    listen(panel);
  }
  function listen(panel) {
    const view = panel.view, held = new Map();
    let moved = 0;
    view.addEventListener("contextmenu", (event) => event.preventDefault());
    view.addEventListener("pointerdown", (event) => {
      state.active = panel.number;
      held.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (held.size === 1) moved = 0;
      try { view.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that is gone already */ }
    });
    view.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const now = { x: event.clientX, y: event.clientY }, dx = now.x - before.x, dy = now.y - before.y, height = view.clientHeight;
      moved += Math.abs(dx) + Math.abs(dy);
      if (held.size === 2) {
        const other = [...held.entries()].find(([id]) => id !== event.pointerId)[1];
        const was = Math.hypot(before.x - other.x, before.y - other.y), is = Math.hypot(now.x - other.x, now.y - other.y);
        changeCamera(panel, (camera) => { move(camera, dx / 2 / height, dy / 2 / height); camera.distance *= was / Math.max(is, 1); });
      } else if (event.shiftKey || event.buttons & 6) changeCamera(panel, (camera) => move(camera, dx / height, dy / height));
      else changeCamera(panel, (camera) => { camera.turn -= dx * 0.008; camera.tilt += dy * 0.008; });
      held.set(event.pointerId, now);
    });
    const release = (event) => {
      const was = held.delete(event.pointerId);
      if (was && moved < 4 && event.type === "pointerup" && event.button === 0) {
        const box = view.getBoundingClientRect();
        showPoint(panel, pick(panel, event.clientX - box.left, event.clientY - box.top));
      }
    };
    view.addEventListener("pointerup", release);
    view.addEventListener("pointercancel", release);
    view.addEventListener("wheel", (event) => {
      event.preventDefault();
      changeCamera(panel, (camera) => { camera.distance *= Math.exp(Math.max(-120, Math.min(120, event.deltaY)) * 0.0014); });
    }, { passive: false });
  }
  function arrange() {
    const count = state.panels.length, w = stage.clientWidth, h = stage.clientHeight;
    let columns = 1, best = 0;
    for (let c = 1; c <= count; c++) {
      const rows = Math.ceil(count / c), side = Math.min(w / c, Math.max(h / rows, 240));
      if (side > best + 1 && (c === 1 || w / c >= 220)) { best = side; columns = c; }
    }
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    grid.style.gridAutoRows = `minmax(${Math.floor(h / Math.ceil(count / columns)) - 1}px, auto)`;
    redraw();
  }
  function open(item) {
    for (const panel of state.panels) for (const layer of panel.layers) if (layer.texture) gl.deleteTexture(layer.texture);
    for (const buffer of uploaded.values()) gl.deleteBuffer(buffer);
    uploaded = new Map();
    state.panels = [];
    grid.replaceChildren();
    byId("title").textContent = item.title;
    byId("gallery").hidden = true;
    stage.hidden = byId("tools").hidden = byId("status").hidden = false;
    byId("back").hidden = !data.gallery;
    byId("centers-label").hidden = !item.panels.some((panel) => panel.centers);
    item.panels.forEach(addPanel);
    const quantised = item.panels.map((panel) => panel.points).find((points) => points.type === "u16");
    if (quantised) {
      const step = Math.max(...quantised.scale);
      byId("status").title = "positions are stored in steps of " + round(step);
      if (!byId("step")) byId("status").append(element("span", ""));
      byId("status").lastChild.id = "step";
      byId("step").textContent = " \u00b7 positions in steps of " + round(step);
    }
    arrange();
  }
  function gallery() {
    stage.hidden = byId("tools").hidden = byId("status").hidden = byId("back").hidden = true;
    byId("gallery").hidden = false;
    byId("title").textContent = data.title;
    const wanted = byId("filter").value, cards = byId("cards");
    const shown = data.items.filter((item) => !wanted || item.group === wanted);
    byId("gallery-count").textContent = shown.length + " clouds" + (data.items.some((item) => item.score !== null) ? ", lowest " + data.scoreName + " first" : "");
    cards.replaceChildren(...shown.map((item) => {
      const card = element("button", "card"), image = element("img", ""), caption = element("div", "caption");
      card.type = "button";
      image.alt = "";
      image.loading = "lazy";
      if (item.thumbnail.startsWith("data:image/png;base64,")) image.src = item.thumbnail;
      caption.append(element("span", "", item.title), element("span", "score", item.score === null ? "" : data.scoreName + " " + percent(item.score)));
      card.append(image, caption);
      card.addEventListener("click", () => open(item));
      return card;
    }));
  }
  function setBackground(number) {
    state.background = number % BACKGROUNDS.length;
    document.documentElement.classList.toggle("dark", state.background === 1);
    redraw();
  }
  function reset() {
    for (const panel of state.panels) Object.assign(panel.camera, startCamera());
    redraw();
  }
  function picture() {
    draw();
    const out = document.createElement("canvas"), ratio = canvas.width / stage.clientWidth, context = out.getContext("2d");
    out.width = canvas.width;
    out.height = canvas.height;
    context.drawImage(canvas, 0, 0);
    context.scale(ratio, ratio);
    context.font = "600 14px system-ui, sans-serif";
    context.fillStyle = state.background === 1 ? "#e8edf2" : "#1d2733";
    const whole = canvas.getBoundingClientRect();
    for (const panel of state.panels) {
      const box = panel.view.getBoundingClientRect();
      context.fillText(panel.title, box.left - whole.left + 12, box.top - whole.top + 22);
    }
    return out;
  }
  function shot() {
    const link = document.createElement("a");
    link.download = (byId("title").textContent.replace(/[^\w-]+/g, "_").slice(0, 80) || "clouds") + ".png";
    picture().toBlob((blob) => {
      link.href = URL.createObjectURL(blob);
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
  function key(event) {
    if (stage.hidden || event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const panel = state.panels[Math.min(state.active, state.panels.length - 1)];
    const turns = { ArrowLeft: ["turn", 0.12], ArrowRight: ["turn", -0.12], ArrowUp: ["tilt", 0.12], ArrowDown: ["tilt", -0.12] };
    if (turns[event.key]) {
      const [name, step] = turns[event.key];
      if (event.shiftKey) changeCamera(panel, (camera) => move(camera, name === "turn" ? step / -2 : 0, name === "tilt" ? step / -2 : 0));
      else changeCamera(panel, (camera) => { camera[name] += step; });
    } else if (event.key === "+" || event.key === "=") changeCamera(panel, (camera) => { camera.distance *= 0.88; });
    else if (event.key === "-") changeCamera(panel, (camera) => { camera.distance /= 0.88; });
    else if (event.key === "r") reset();
    else if (event.key === "b") setBackground(state.background + 1);
    else if (event.key === "l") byId("link").click();
    else if (event.key === "s") shot();
    else if (/^[1-9]$/.test(event.key)) for (const other of state.linked ? state.panels : [panel]) choose(other, Number(event.key) - 1);
    else return;
    event.preventDefault();
  }

  // ---- what others may ask: tests, and people with a console ------------------------------------------------
  window.pclViewer = {
    ready: false,
    frames: () => state.frames,
    cameras: () => state.panels.map((panel) => ({ ...panel.camera })),
    pick: (number, x, y) => { const found = pick(state.panels[number], x, y); return found < 0 ? null : readPoint(state.panels[number], found); },
    readPixels: (number) => {
      draw();
      const box = rectangle(state.panels[number]), out = new Uint8Array(4 * box.w * box.h);
      gl.readPixels(box.x, box.y, box.w, box.h, gl.RGBA, gl.UNSIGNED_BYTE, out);
      return { width: box.w, height: box.h, ratio: box.ratio, pixels: out };
    },
    frameTime: (count, isMoving) => {
      state.moving = Boolean(isMoving);
      const one = new Uint8Array(4), times = [];
      for (let k = 0; k < count; k++) {
        const began = performance.now();
        for (const panel of state.panels) panel.camera.turn += 0.05;
        draw();
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, one);
        times.push(performance.now() - began);
      }
      state.moving = false;
      redraw();
      return times;
    },
    picture: () => picture().toDataURL("image/png"),
  };

  if (!gl) {
    byId("title").textContent = data.title;
    byId("status").textContent = "This browser offers no WebGL 2, which the page needs; switch hardware acceleration on or use a newer browser.";
    return;
  }
  compile();
  const groups = [...new Set(data.items.map((item) => item.group).filter(Boolean))].sort();
  byId("filter").append(new Option("all", ""), ...groups.map((name) => new Option(name, name)));
  byId("filter").addEventListener("change", gallery);
  byId("back").addEventListener("click", gallery);
  byId("size").addEventListener("input", (event) => { state.size = 2 ** Number(event.target.value); redraw(); });
  byId("link").addEventListener("change", (event) => {
    state.linked = event.target.checked;
    if (state.linked && state.panels.length) changeCamera(state.panels[Math.min(state.active, state.panels.length - 1)], () => {});
  });
  byId("centers").addEventListener("change", (event) => { state.centers = event.target.checked; redraw(); });
  byId("background").addEventListener("click", () => setBackground(state.background + 1));
  byId("reset").addEventListener("click", reset);
  byId("shot").addEventListener("click", shot);
  window.addEventListener("keydown", key);
  window.addEventListener("resize", arrange);
  stage.addEventListener("scroll", redraw);
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    uploaded = new Map();
    target = null;
    for (const panel of state.panels) for (const layer of panel.layers) layer.texture = null;
    compile();
    redraw();
  });
  if (data.gallery) gallery(); else open(data.items[0]);
  window.pclViewer.ready = true;
})();
